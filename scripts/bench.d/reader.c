/* What the benchmark times, in plain system calls. Each mode prints seconds (or microseconds for `first`).
 *
 *   seq FILE BYTES          reads FILE from start to end in pieces of BYTES
 *   rand FILE COUNT BYTES   reads COUNT random pieces of BYTES, the same ones each time
 *   files LIST              opens, reads and closes each file that LIST names, one path a line
 *   first FILE              opens FILE and reads its first 4 KiB
 *   forget FILE             drops FILE's pages from this file system's page cache
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int open_or_fail(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) fail(path);
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const char *mode = argv[1], *path = argv[2];
    static char buffer[4 << 20];
    if (!strcmp(mode, "seq")) {
        size_t bytes = atol(argv[3]);
        double start = now();
        int fd = open_or_fail(path);
        ssize_t got;
        while ((got = read(fd, buffer, bytes)) > 0) {}
        if (got < 0) fail(path);
        printf("%.6f\n", now() - start);
    } else if (!strcmp(mode, "rand")) {
        long count = atol(argv[3]);
        size_t bytes = atol(argv[4]);
        int fd = open_or_fail(path);
        struct stat st;
        fstat(fd, &st);
        uint64_t pieces = st.st_size / bytes, x = 88172645463325252ull;
        posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
        double start = now();
        for (long i = 0; i < count; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            if (pread(fd, buffer, bytes, (x % pieces) * bytes) != (ssize_t)bytes) fail(path);
        }
        printf("%.6f\n", now() - start);
    } else if (!strcmp(mode, "files")) {
        FILE *list = fopen(path, "r");
        if (!list) fail(path);
        static char *paths[2000000];
        long count = 0;
        char *line = NULL;
        size_t size = 0;
        ssize_t len;
        while ((len = getline(&line, &size, list)) > 0) {
            line[len - 1] = 0;
            paths[count++] = strdup(line);
        }
        double start = now();
        for (long i = 0; i < count; i++) {
            int fd = open_or_fail(paths[i]);
            if (read(fd, buffer, sizeof buffer) < 0) fail(paths[i]);
            close(fd);
        }
        printf("%.6f\n", now() - start);
    } else if (!strcmp(mode, "first")) {
        double start = now();
        int fd = open_or_fail(path);
        if (read(fd, buffer, 4096) <= 0) fail(path);
        printf("%.1f\n", (now() - start) * 1e6);
    } else if (!strcmp(mode, "forget")) {
        int fd = open_or_fail(path);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    } else {
        return 2;
    }
    return 0;
}
