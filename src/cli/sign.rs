//! Signing: what a home prepared is signed in this process, and handed back.

use super::keys::private_key;
use super::session::Session;
use super::{Context, Error};
use crate::manifest::{Envelope, Manifest, PrivateKey, ReleaseIndex, Signed};
use crate::serve::control::{Failure, Finished, Prepared, Published, Request};

/// The most times that one job is signed; a home gives up before.
const SIGNATURES_MAX: usize = 100;

/// Reads keys; before the work, so that a missing one or a mistyped password costs nothing.
pub(super) fn read_keys(context: &Context, words: &[String]) -> Result<Vec<PrivateKey>, Error> {
    words
        .iter()
        .map(|word| private_key(context, word))
        .collect()
}

/// Signs what waits, and has it announced; once more with what others have announced meanwhile, whenever they were faster.
pub(super) fn sign_and_finish(
    session: &mut Session,
    prepared: &Prepared,
    job: &str,
    keys: &[PrivateKey],
) -> Result<Published, Error> {
    let mut again: Option<Box<Prepared>> = None;
    for _ in 0..SIGNATURES_MAX {
        let signed = sign(again.as_deref().unwrap_or(prepared), keys);
        let (manifest, index) = match signed {
            Ok(envelopes) => envelopes,
            Err(failure) => {
                cancel(session, job);
                return Err(failure.into());
            }
        };
        let request = Request::PublishFinish {
            job: job.to_owned(),
            manifest,
            index,
        };
        match session.get(&request)? {
            Finished::Done(published) => return Ok(published),
            Finished::Again(next) => again = Some(next),
        }
    }
    cancel(session, job);
    Err(Failure::failed("others were faster each time")
        .hint("run the same command again")
        .into())
}

/// Gives a job up, so that nothing waits for it.
pub(super) fn cancel(session: &mut Session, job: &str) {
    let job = job.to_owned();
    // Whatever it says: what failed before is what is told.
    let _ = session.ask(&Request::PublishCancel { job }, &[], &mut |_| Ok(()));
}

/// Signs what was prepared: manifest and release index.
fn sign(
    prepared: &Prepared,
    keys: &[PrivateKey],
) -> Result<(Option<String>, Option<String>), Failure> {
    let keys: Vec<&PrivateKey> = keys.iter().collect();
    let envelope = |signed: Signed| {
        let envelope = Envelope::sign(&signed, &keys)
            .map_err(|error| Failure::failed(&error).hint(error.hint()))?;
        String::from_utf8(envelope.bytes().to_vec()).map_err(Failure::failed)
    };
    let manifest = prepared
        .manifest
        .as_ref()
        .map(|text| Manifest::parse(text.as_bytes()))
        .transpose()
        .map_err(Failure::failed)?;
    let index = prepared
        .index
        .as_ref()
        .map(|text| ReleaseIndex::parse(text.as_bytes()))
        .transpose()
        .map_err(Failure::failed)?;
    Ok((
        manifest.map(Signed::from).map(envelope).transpose()?,
        index.map(Signed::from).map(envelope).transpose()?,
    ))
}
