/* Loaded before the C library (operations.py): sees every change of files under one folder.

   It can end the process with SIGKILL before a change of some number, write all changes into a log, and let the wall
   clock jump. Off until `faults_watch` or `faults_clock` is called. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static long count, kill_at;
static int log_descriptor = -1, jumping;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

void faults_watch(const char *folder, long at, int descriptor) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    count = 0, kill_at = at, log_descriptor = descriptor;
}

long faults_count(void) { return count; }

void faults_clock(int on) { jumping = on; }

static int ours(const char *path) {
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int path_of(int descriptor, const char *name, char *out) {
    char link[64];
    ssize_t length = 0;
    if (name && name[0] == '/') {
        strncpy(out, name, PATH_MAX - 1), out[PATH_MAX - 1] = 0;
        return ours(out);
    }
    if (name && descriptor == AT_FDCWD) {
        if (!getcwd(out, PATH_MAX)) return 0;
        length = strlen(out);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        length = readlink(link, out, PATH_MAX - 1);
        if (length < 0) return 0;
        out[length] = 0;
    }
    if (name) snprintf(out + length, PATH_MAX - length, "/%s", name);
    return ours(out);
}

static void put(const void *data, size_t size) {
    REAL(write);
    while (size) {
        ssize_t done = real(log_descriptor, data, size);
        if (done <= 0) abort();
        data = (const char *)data + done, size -= done;
    }
}

/* One change is about to happen. A record: kind, offset, sizes of path and data, path, data. */
static void change(char kind, const char *path, int64_t offset, const void *data, uint64_t size) {
    pthread_mutex_lock(&lock);
    if (kind != 'm' && ++count == kill_at) kill(getpid(), SIGKILL);
    if (log_descriptor >= 0) {
        uint64_t length = strlen(path);
        put(&kind, 1), put(&offset, 8), put(&length, 8), put(&size, 8), put(path, length), put(data, size);
    }
    pthread_mutex_unlock(&lock);
}

void faults_mark(const char *text) { if (root_length) change('m', text, 0, "", 0); }

static void bytes(int descriptor, int64_t offset, const void *data, size_t size) {
    char path[PATH_MAX];
    if (descriptor != log_descriptor && path_of(descriptor, NULL, path)) change('w', path, offset, data, size);
}

static int64_t place(int descriptor) {
    int flags = fcntl(descriptor, F_GETFL);
    struct stat facts;
    if (flags >= 0 && (flags & O_APPEND) && !fstat(descriptor, &facts)) return facts.st_size;
    return lseek(descriptor, 0, SEEK_CUR);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    if (root_length && !inside) inside = 1, bytes(descriptor, place(descriptor), data, size), inside = 0;
    return real(descriptor, data, size);
}

#define PWRITE(name, type) \
    ssize_t name(int descriptor, const void *data, size_t size, type offset) { \
        REAL(name); \
        if (root_length) bytes(descriptor, offset, data, size); \
        return real(descriptor, data, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int descriptor, const struct iovec *pieces, int number) {
    REAL(writev);
    char path[PATH_MAX];
    if (!root_length || !path_of(descriptor, NULL, path)) return real(descriptor, pieces, number);
    ssize_t all = 0;
    for (int each = 0; each < number; each++) {
        ssize_t done = write(descriptor, pieces[each].iov_base, pieces[each].iov_len);
        if (done < 0) return all ? all : done;
        all += done;
    }
    return all;
}

/* Told that they cannot, callers copy by reading and writing, which is seen. */
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    char path[PATH_MAX];
    if (root_length && path_of(out, NULL, path)) { errno = ENOSYS; return -1; }
    return real(in, from, out, to, size, flags);
}

static ssize_t copied(int out, int in, off_t *offset, size_t size) {
    char piece[65536];
    size_t wanted = size < sizeof piece ? size : sizeof piece;
    ssize_t got = offset ? pread(in, piece, wanted, *offset) : read(in, piece, wanted);
    if (got <= 0) return got;
    ssize_t done = write(out, piece, got);
    if (offset && done > 0) *offset += done;
    return done;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    REAL(sendfile);
    char path[PATH_MAX];
    return root_length && path_of(out, NULL, path) ? copied(out, in, offset, size) : real(out, in, offset, size);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) {
    REAL(sendfile64);
    char path[PATH_MAX];
    return root_length && path_of(out, NULL, path) ? copied(out, in, (off_t *)offset, size) : real(out, in, offset, size);
}

#define OF_DESCRIPTOR(name, kind, parameters, arguments, offset) \
    int name parameters { \
        REAL(name); \
        char path[PATH_MAX]; \
        if (root_length && path_of(descriptor, NULL, path)) change(kind, path, offset, "", 0); \
        return real arguments; \
    }
OF_DESCRIPTOR(ftruncate, 't', (int descriptor, off_t size), (descriptor, size), size)
OF_DESCRIPTOR(ftruncate64, 't', (int descriptor, off64_t size), (descriptor, size), size)

/* With all of a file's content, as not every way of writing is seen here (mapped memory, for one). */
static void synced(int descriptor) {
    REAL(open);
    char path[PATH_MAX], *content = NULL;
    struct stat facts;
    if (!root_length || !path_of(descriptor, NULL, path) || fstat(descriptor, &facts)) return;
    size_t size = S_ISREG(facts.st_mode) && log_descriptor >= 0 ? facts.st_size : 0, got = 0;
    if (size) {
        int file = real(path, O_RDONLY);
        content = malloc(size);
        for (ssize_t done = 1; file >= 0 && content && got < size && done > 0; got += done > 0 ? done : 0)
            done = pread(file, content + got, size - got, got);
        if (file >= 0) close(file);
    }
    change(S_ISREG(facts.st_mode) ? 's' : 'f', path, 0, content ? content : "", got);
    free(content);
}

int fsync(int descriptor) { REAL(fsync); synced(descriptor); return real(descriptor); }
int fdatasync(int descriptor) { REAL(fdatasync); synced(descriptor); return real(descriptor); }

static void opened(int at, const char *name, int flags) {
    char path[PATH_MAX];
    struct stat facts;
    if (!(flags & (O_CREAT | O_TRUNC)) || !path_of(at, name, path)) return;
    if (lstat(path, &facts)) { if (flags & O_CREAT) change('c', path, 0, "", 0); }
    else if ((flags & O_TRUNC) && facts.st_size) change('t', path, 0, "", 0);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (root_length) opened(AT_FDCWD, path, flags); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (root_length) opened(at, path, flags); \
        return real(at, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

static void named(char kind, int at, const char *name) {
    char path[PATH_MAX];
    struct stat facts;
    if (!root_length || !path_of(at, name, path)) return;
    if ((kind == 'd') == !lstat(path, &facts)) change(kind, path, 0, "", 0); /* else it fails */
}

int mkdir(const char *path, mode_t mode) { REAL(mkdir); named('k', AT_FDCWD, path); return real(path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { REAL(mkdirat); named('k', at, path); return real(at, path, mode); }
int unlink(const char *path) { REAL(unlink); named('d', AT_FDCWD, path); return real(path); }
int rmdir(const char *path) { REAL(rmdir); named('d', AT_FDCWD, path); return real(path); }
int unlinkat(int at, const char *path, int flags) { REAL(unlinkat); named('d', at, path); return real(at, path, flags); }

static void renamed(int from_at, const char *from, int to_at, const char *to) {
    char one[PATH_MAX], two[PATH_MAX];
    struct stat facts;
    if (root_length && path_of(from_at, from, one) && path_of(to_at, to, two) && !lstat(one, &facts))
        change('r', one, 0, two, strlen(two));
}

int rename(const char *from, const char *to) {
    REAL(rename);
    renamed(AT_FDCWD, from, AT_FDCWD, to);
    return real(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(renameat);
    renamed(from_at, from, to_at, to);
    return real(from_at, from, to_at, to);
}

/* Jumps by up to ten years either way at every look. */
static int64_t jump(void) {
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return jumping ? (int64_t)(state % 630720000) - 315360000 : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int done = real(clock, now);
    if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jump();
    return done;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec, now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
