//! The one fetch of a block that all its waiters share.
//!
//! A flight is a task of its own, so a waiter that leaves ends nothing. It looks into the store, asks the best source,
//! asks a second one when the first is late, and verifies whatever comes. It ends with a verified block or, by its
//! deadline, with an error that says what every source said.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::failure::{Answer, Answers, FetchError};
use super::ranked::{Condemned, Desk, Outcome, Ranked, Readiness, Slot};
use super::{Inner, Priority};
use crate::block::{Block, WrongBytes};
use crate::source::{SourceError, Spill, Want};

/// Times that sources are asked for one block.
const ATTEMPTS_MAX: u32 = 8;

/// An attempt that is silent for so long is given up, if its source does not do it itself. Looked at once per such time, so
/// it may be silent for nearly twice as long.
const SILENCE: Duration = Duration::from_secs(15);

/// The wait before a source that failed is asked again for the same block; doubles each time.
const RETRY: Duration = Duration::from_millis(200);

/// When a flight that waits in line looks whether another source has become the better one; doubles up to the second.
const LOOK_AGAIN: Duration = Duration::from_millis(30);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(480);

/// How long a source that has not proven itself is waited for when another has, and would long have answered.
const UNPROVEN: Duration = Duration::from_millis(100);

/// How far a flight is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Flying,
    /// The block is there; the store has not got it yet.
    Verified(Block),
    /// The block is there, and the store has it or could not take it.
    Done(Block),
    /// A prefetch found the block in the store and did not read it.
    Present,
    Failed(FetchError),
}

pub(super) struct Flight {
    pub(super) want: Want,
    priority: AtomicU8,
    /// Tells the task that the priority was raised, or that the block came along with another.
    nudged: Notify,
    given: Mutex<Option<Block>>,
    stage: watch::Sender<Stage>,
}

impl Flight {
    pub(super) fn new(want: Want, priority: Priority) -> Self {
        Flight {
            want,
            priority: AtomicU8::new(priority as u8),
            nudged: Notify::new(),
            given: Mutex::new(None),
            stage: watch::Sender::new(Stage::Flying),
        }
    }

    pub(super) fn priority(&self) -> Priority {
        match self.priority.load(Ordering::Relaxed) {
            0 => Priority::Foreground,
            1 => Priority::Prefetch,
            _ => Priority::Warm,
        }
    }

    /// Raises the priority; the flight gets its full time from now on.
    pub(super) fn raise(&self, priority: Priority) {
        if self.priority.fetch_min(priority as u8, Ordering::Relaxed) > priority as u8 {
            self.nudged.notify_one();
        }
    }

    /// Gives the flight its block, which came along with another.
    pub(super) fn give(&self, block: Block) {
        *self.given.lock() = Some(block);
        self.nudged.notify_one();
    }

    pub(super) fn set(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    /// Ends the flight if it has not ended: its task is being dropped.
    pub(super) fn abandon(&self) {
        self.stage.send_if_modified(|stage| {
            let block = match stage {
                Stage::Flying => {
                    *stage = Stage::Failed(FetchError::Closed);
                    return true;
                }
                Stage::Verified(block) => block.clone(),
                Stage::Done(_) | Stage::Present | Stage::Failed(_) => return false,
            };
            *stage = Stage::Done(block);
            true
        });
    }

    /// Waits for the end; `kept` waits until the store has the block, too. `None`: the block is in the store, unread.
    pub(super) async fn end(&self, kept: bool) -> Option<Result<Block, FetchError>> {
        let mut stage = self.stage.subscribe();
        let over = stage.wait_for(|stage| match stage {
            Stage::Flying => false,
            Stage::Verified(_) => !kept,
            Stage::Done(_) | Stage::Present | Stage::Failed(_) => true,
        });
        let stage = over.await.map(|stage| stage.clone());
        match stage {
            Ok(Stage::Verified(block) | Stage::Done(block)) => Some(Ok(block)),
            Ok(Stage::Failed(error)) => Some(Err(error)),
            Ok(Stage::Present) => None,
            Ok(Stage::Flying) | Err(_) => Some(Err(FetchError::Closed)),
        }
    }
}

/// What a flight knows of a source it has dealt with.
struct Tried {
    desk: Arc<Desk>,
    running: bool,
    failures: u32,
    /// When it may be asked again; never, after a no or a lie.
    again: Option<Instant>,
}

/// When to ask a second source.
#[derive(Clone, Copy)]
struct Hedge {
    /// From now on if the other one is proven, and quick enough to have answered twice by now.
    early: Instant,
    /// From now on in any case.
    at: Instant,
}

impl Hedge {
    fn at(at: Instant) -> Self {
        Hedge { early: at, at }
    }

    fn after(desk: &Desk, len: u32, now: Instant) -> Self {
        let (late, known) = desk.late(len);
        let early = if known { late } else { late.min(UNPROVEN) };
        Hedge {
            early: now + early,
            at: now + late,
        }
    }
}

/// Whether an attempt is a second one in parallel.
#[derive(Clone, Copy, PartialEq)]
enum Hedging {
    No,
    /// Only at a source that is proven and quick.
    Early,
    Yes,
}

impl Hedging {
    fn of(hedging: bool, early: bool) -> Self {
        match (hedging, early) {
            (false, _) => Hedging::No,
            (true, true) => Hedging::Early,
            (true, false) => Hedging::Yes,
        }
    }
}

enum Pick {
    Start(Arc<Ranked>, Slot),
    Line(Arc<Ranked>, oneshot::Receiver<Slot>),
    Later(Instant),
    Nobody,
}

struct Landed {
    ranked: Arc<Ranked>,
    result: Result<Block, Outcome>,
}

/// The state of one flight while it asks sources.
struct Pilot<'a> {
    inner: &'a Inner,
    flight: &'a Flight,
    spill: Spill,
    /// When the flight began, or was last raised.
    began: Instant,
    attempts: u32,
    tried: Vec<Tried>,
    answers: Vec<Answer>,
    lied: bool,
    refused: usize,
    failed: bool,
}

/// Asks the sources for the flight's block.
pub(super) async fn ask_sources(inner: &Inner, flight: &Flight) -> Result<Block, FetchError> {
    let mut pilot = Pilot {
        inner,
        flight,
        spill: Spill::new(inner.offers.clone()),
        began: Instant::now(),
        attempts: 0,
        tried: Vec::new(),
        answers: Vec::new(),
        lied: false,
        refused: 0,
        failed: false,
    };
    pilot.fly().await
}

impl Pilot<'_> {
    async fn fly(&mut self) -> Result<Block, FetchError> {
        let len = self.flight.want.block.len();
        let mut running = FuturesUnordered::new();
        let mut line: Option<(Arc<Ranked>, oneshot::Receiver<Slot>)> = None;
        // When a second source is asked although the first is still at it.
        let mut hedge: Option<Hedge> = None;
        let mut patience = LOOK_AGAIN;
        // When to look whether another line is the better one, or a source has rested.
        let mut look: Option<Instant> = None;
        let mut replace = false;
        let mut wake = Instant::now();
        let mut alarm = pin!(sleep_until(wake));
        loop {
            let now = Instant::now();
            let deadline = self.deadline();
            if now >= deadline {
                return Err(self.late());
            }
            let hedging = !running.is_empty() && !replace;
            let due = hedge.is_some_and(|hedge| now >= hedge.early);
            let early = line.is_none() && hedge.is_some_and(|hedge| now < hedge.at);
            let waiting = line.is_some();
            let due = if waiting {
                look.is_some_and(|at| now >= at)
            } else {
                due
            };
            if running.is_empty() || replace || due {
                replace = false;
                look = None;
                match self.pick(len, Hedging::of(hedging, early), line.take(), now) {
                    Pick::Start(ranked, slot) => {
                        hedge = Some(Hedge::after(slot.desk(), len, now));
                        running.push(self.attempt(ranked, slot, hedging));
                        continue;
                    }
                    Pick::Line(ranked, receiver) => {
                        line = Some((ranked, receiver));
                        look = Some(now + patience);
                        patience = (patience * 2).min(LOOK_AGAIN_MAX);
                    }
                    Pick::Later(at) if running.is_empty() => {
                        if at >= deadline {
                            return Err(self.fail());
                        }
                        look = Some(at);
                    }
                    Pick::Nobody if running.is_empty() => return Err(self.fail()),
                    Pick::Later(_) | Pick::Nobody => {
                        let at = hedge.map_or(now, |hedge| hedge.at);
                        hedge = Some(Hedge::at(if early { at } else { now + patience }));
                        patience = (patience * 2).min(LOOK_AGAIN_MAX);
                    }
                }
            }
            let hedged = hedge.filter(|_| !running.is_empty() && line.is_none());
            let next = [hedged.map(|hedge| hedge.early), look];
            let next = next.into_iter().flatten().fold(deadline, Instant::min);
            if next != wake {
                wake = next;
                alarm.as_mut().reset(wake);
            }
            tokio::select! {
                biased;
                Some(landed) = running.next(), if !running.is_empty() => {
                    let Landed { ranked, result } = landed;
                    match result {
                        Ok(block) => return Ok(block),
                        Err(outcome) => self.note(&ranked, outcome),
                    }
                    replace = !running.is_empty();
                }
                Ok(slot) = wait_in(&mut line), if line.is_some() => {
                    look = None;
                    if let Some((ranked, _)) = line.take() {
                        hedge = Some(Hedge::after(slot.desk(), len, Instant::now()));
                        patience = LOOK_AGAIN;
                        running.push(self.attempt(ranked, slot, false));
                    }
                }
                () = self.flight.nudged.notified() => {
                    if let Some(block) = self.flight.given.lock().take() {
                        return Ok(block);
                    }
                    (line, look) = (None, None);
                    self.began = Instant::now();
                }
                () = alarm.as_mut() => {}
            }
        }
    }

    /// The end of the flight if no more bytes come.
    fn deadline(&self) -> Instant {
        let options = &self.inner.options;
        let idle = self.spill.last().max(self.began) + options.idle_deadline;
        idle.min(self.began + options.total_deadline)
    }

    /// Chooses whom to ask next. A hedge takes tokens, before it stands in line.
    fn pick(
        &mut self,
        len: u32,
        hedging: Hedging,
        line: Option<(Arc<Ranked>, oneshot::Receiver<Slot>)>,
        now: Instant,
    ) -> Pick {
        if self.attempts >= ATTEMPTS_MAX {
            return Pick::Nobody;
        }
        let sources = self.inner.sources.load();
        let want = &self.flight.want;
        let able: Vec<(&Arc<Ranked>, Arc<Desk>)> = sources
            .iter()
            .filter(|ranked| ranked.source.serves(want))
            .map(|ranked| (ranked, ranked.desk(want)))
            .collect();
        let proven = able.iter().filter(|(_, desk)| desk.proven()).count();
        let mut best: Option<(Duration, bool, &Arc<Ranked>, &Arc<Desk>)> = None;
        let mut later: Option<Instant> = None;
        for (ranked, desk) in &able {
            let tried = self.tried.iter().find(|t| Arc::ptr_eq(&t.desk, desk));
            let again = match tried {
                Some(tried) if tried.running => continue,
                Some(Tried { again: None, .. }) => continue,
                Some(Tried {
                    again: Some(at), ..
                }) => *at,
                None => now,
            };
            let probe = proven > usize::from(desk.proven());
            match desk.readiness(len, ranked.tree(want), probe, now) {
                Readiness::Ready(cost) if again <= now => {
                    if best.is_none_or(|(least, ..)| cost < least) {
                        best = Some((cost, probe, ranked, desk));
                    }
                }
                Readiness::Ready(_) => later = Some(later.map_or(again, |at| at.min(again))),
                Readiness::Resting { until, lied } => {
                    let until = until.max(again);
                    later = Some(later.map_or(until, |at| at.min(until)));
                    if tried.is_none() && self.unheard(ranked.source.name()) {
                        self.lied |= lied;
                        self.failed |= !lied;
                        let why = if lied {
                            "not asked, it lied"
                        } else {
                            "not asked, it failed"
                        };
                        self.answer(ranked, format!("{why} a short time ago"));
                    }
                }
                Readiness::Refused { said } => {
                    if self.unheard(ranked.source.name()) {
                        self.refused += 1;
                        self.answer(ranked, said);
                    }
                }
            }
        }
        let Some((_, probe, ranked, desk)) = best else {
            return later.map_or(Pick::Nobody, Pick::Later);
        };
        let class = self.flight.priority();
        if hedging != Hedging::No && line.is_none() {
            let (late, known) = desk.late(len);
            let quick = known && late * 2 <= UNPROVEN;
            if !self.inner.tokens.has(len) || (hedging == Hedging::Early && !quick) {
                return Pick::Nobody;
            }
            self.inner.tokens.take(len);
            self.inner.counters.hedges.add(1);
        }
        if let Some((before, receiver)) = line
            && Arc::ptr_eq(&before.desk(want), desk)
        {
            // Somebody has to call the line when the source has rested and nothing is under way there.
            desk.call();
            return Pick::Line(before, receiver);
        }
        match desk.take(class, probe, now) {
            Some(slot) => Pick::Start(Arc::clone(ranked), slot),
            None => Pick::Line(Arc::clone(ranked), desk.queue(class)),
        }
    }

    /// Asks one source once.
    fn attempt(
        &mut self,
        ranked: Arc<Ranked>,
        mut slot: Slot,
        hedge: bool,
    ) -> impl Future<Output = Landed> + use<> {
        self.attempts += 1;
        match self
            .tried
            .iter_mut()
            .find(|t| Arc::ptr_eq(&t.desk, slot.desk()))
        {
            Some(tried) => tried.running = true,
            None => self.tried.push(Tried {
                desk: Arc::clone(slot.desk()),
                running: true,
                failures: 0,
                again: None,
            }),
        }
        let want = self.flight.want.clone();
        let spill = self.spill.clone();
        tracing::trace!(digest = %want.block.digest, source = ranked.source.name(), hedge, "asking");
        slot.asking(want.block.len(), ranked.tree(&want).cloned());
        async move {
            let result = ask(&ranked, &want, &spill).await;
            let outcome = match &result {
                Ok(_) => Outcome::Delivered,
                Err(outcome) => outcome.clone(),
            };
            slot.finish(outcome);
            Landed { ranked, result }
        }
    }

    /// Notes why an attempt failed, and when its source may be asked again.
    fn note(&mut self, ranked: &Ranked, outcome: Outcome) {
        let now = Instant::now();
        let desk = ranked.desk(&self.flight.want);
        let mut tried = self.tried.iter_mut();
        let tried = tried.find(|t| Arc::ptr_eq(&t.desk, &desk));
        let mut again = None;
        if let Some(tried) = tried {
            tried.running = false;
            let wait = RETRY * 2_u32.saturating_pow(tried.failures.min(16));
            tried.failures += 1;
            tried.again = match outcome {
                Outcome::Failed { .. } | Outcome::Overloaded { .. } => Some(now + wait),
                _ => None,
            };
            again = tried.again;
        }
        tracing::debug!(
            digest = %self.flight.want.block.digest,
            source = ranked.source.name(),
            ?outcome,
            again = again.is_some(),
            "no block"
        );
        let said = match outcome {
            Outcome::Delivered => return,
            Outcome::Missing { said } => said,
            Outcome::Failed { said } | Outcome::Overloaded { said, .. } => {
                self.failed = true;
                said
            }
            Outcome::Refused { said } => {
                self.refused += 1;
                said
            }
            Outcome::Lied { said, .. } => {
                self.lied = true;
                said
            }
        };
        self.answer(ranked, said);
    }

    fn unheard(&self, name: &str) -> bool {
        self.answers.iter().all(|answer| answer.source != name)
    }

    fn answer(&mut self, ranked: &Ranked, said: String) {
        self.answers.push(Answer {
            source: ranked.source.name().to_owned(),
            said,
        });
    }

    /// The deadline has come: whoever is still at it has not answered.
    fn late(&mut self) -> FetchError {
        let silent: Vec<_> = self.inner.sources.load().iter().map(Arc::clone).collect();
        for ranked in silent {
            let desk = ranked.desk(&self.flight.want);
            let mut tried = self.tried.iter();
            let running = tried.any(|t| t.running && Arc::ptr_eq(&t.desk, &desk));
            if running {
                self.answer(&ranked, "no answer in time".to_owned());
            } else if self.unheard(ranked.source.name()) && ranked.source.serves(&self.flight.want)
            {
                self.answer(&ranked, "not asked, it is too busy".to_owned());
            }
        }
        FetchError::Deadline {
            digest: self.flight.want.block.digest,
            answers: self.answers(),
        }
    }

    /// Nobody is left to be asked.
    fn fail(&mut self) -> FetchError {
        let digest = self.flight.want.block.digest;
        let answers = self.answers();
        if self.lied {
            FetchError::NoHonest { digest, answers }
        } else if self.failed {
            FetchError::Deadline { digest, answers }
        } else if self.refused > 0 && self.refused == answers.0.len() {
            FetchError::Refused { digest, answers }
        } else {
            FetchError::NoSource { digest, answers }
        }
    }

    fn answers(&mut self) -> Answers {
        Answers(std::mem::take(&mut self.answers).into())
    }
}

async fn wait_in(
    line: &mut Option<(Arc<Ranked>, oneshot::Receiver<Slot>)>,
) -> Result<Slot, oneshot::error::RecvError> {
    match line {
        Some((_, receiver)) => receiver.await,
        None => std::future::pending().await,
    }
}

/// Asks a source and verifies what it says.
async fn ask(ranked: &Ranked, want: &Want, spill: &Spill) -> Result<Block, Outcome> {
    let mut answer = pin!(ranked.source.fetch(want, spill));
    let mut before = spill.arrived();
    let answer = loop {
        match tokio::time::timeout(SILENCE, answer.as_mut()).await {
            Ok(answer) => break answer,
            Err(_) if spill.arrived() == before => {
                let said = "silent".to_owned();
                return Err(Outcome::Failed { said });
            }
            Err(_) => before = spill.arrived(),
        }
    };
    match answer {
        Ok(bytes) => verify(ranked, want, bytes),
        Err(SourceError::NotFound { reason }) => Err(Outcome::Missing {
            said: format!("has not got it ({reason})"),
        }),
        Err(SourceError::Unavailable {
            retry_after: None,
            reason,
        }) => Err(Outcome::Failed { said: reason }),
        Err(SourceError::Unavailable {
            retry_after: Some(wait),
            reason,
        }) => Err(Outcome::Overloaded { said: reason, wait }),
        Err(SourceError::Refused { reason }) => Err(Outcome::Refused { said: reason }),
    }
}

fn verify(ranked: &Ranked, want: &Want, bytes: Bytes) -> Result<Block, Outcome> {
    let digest = want.block.digest;
    match Block::verify(digest, want.block.len(), bytes) {
        Ok(block) => Ok(block),
        Err(wrong) => {
            let kind = ranked.source.kind();
            let condemned = match () {
                () if kind.answers_by_digest() => Condemned::Source,
                () if kind.answers_by_path() => Condemned::Tree,
                () => Condemned::Nothing,
            };
            let said = match &wrong {
                WrongBytes::Length { want, got, .. } if (*got as u64) < u64::from(*want) => {
                    format!("{got} bytes where {want} are right")
                }
                WrongBytes::Length { want, .. } => {
                    format!("more than the {want} bytes that are right")
                }
                WrongBytes::Digest { .. } => "other bytes than asked for".to_owned(),
            };
            tracing::warn!(%digest, source = ranked.source.name(), %said, "wrong answer");
            Err(Outcome::Lied { said, condemned })
        }
    }
}
