/* record_swap: renameat2 exchanges two names in one step; a file system that cannot gets rename and a copy
 * instead, which costs as many bytes as the file has, for every finished request. */
#include "experiments/record_swap.h"
#include "engine/err.h"
#include "engine/log.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COPY_BYTES = 1 << 20 };

static int still_there(const struct record_swap *s)
{
    struct stat held, named;
    return fstat(s->fd, &held) == 0 && stat(s->lock, &named) == 0 && held.st_ino == named.st_ino &&
           held.st_dev == named.st_dev;
}

static int report_holder(const struct record_swap *s)
{
    char pid[32] = "";
    ssize_t n = pread(s->fd, pid, sizeof pid - 1, 0);
    pid[n > 0 ? strcspn(pid, "\n") : 0] = 0;
    FAIL(ERR_IO,
         "%s: another specbed writes this file, process %s; wait for it or choose another file with -o",
         s->path, *pid ? pid : "unknown");
}

/* A lock that its holder removed between our open and our flock locks nothing: try again. */
static int take_lock(struct record_swap *s)
{
    for (;;) {
        s->fd = open(s->lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (s->fd < 0)
            FAIL(ERR_IO, "%s: cannot create: %s", s->lock, strerror(errno));
        if (flock(s->fd, LOCK_EX | LOCK_NB)) {
            if (errno == ENOSYS || errno == EOPNOTSUPP || errno == ENOLCK) {
                log_warn("record: %s: this file system has no locks: nothing keeps a second writer out",
                         s->lock);
                break;
            }
            int rc = errno == EWOULDBLOCK ? report_holder(s)
                                          : ERR_SET(ERR_IO, "%s: cannot lock: %s", s->lock, strerror(errno));
            close(s->fd);
            s->fd = -1;
            return rc;
        }
        if (still_there(s))
            break;
        close(s->fd);
    }
    if (ftruncate(s->fd, 0) || dprintf(s->fd, "%ld\n", (long)getpid()) < 0)
        FAIL(ERR_IO, "%s: cannot write: %s", s->lock, strerror(errno));
    return 0;
}

int record_swap_open(struct record_swap *s, const char *path)
{
    *s = (struct record_swap){.fd = -1};
    s->path = strdup(path);
    if (asprintf(&s->next, "%s.next", path) < 0)
        s->next = NULL;
    if (asprintf(&s->lock, "%s.lock", path) < 0)
        s->lock = NULL;
    int rc = s->path && s->next && s->lock ? take_lock(s) : ERR_SET(ERR_MEMORY, "%s: out of memory", path);
    if (rc)
        record_swap_close(s);
    return rc;
}

void record_swap_close(struct record_swap *s)
{
    if (s->fd >= 0) {
        unlink(s->next);
        unlink(s->lock);
        close(s->fd);
    }
    free(s->path);
    free(s->next);
    free(s->lock);
    *s = (struct record_swap){.fd = -1};
}

static int copy_bytes(int from, int to, const struct record_swap *s)
{
    int rc = 0;
    char *buf = malloc(COPY_BYTES);
    if (!buf)
        FAIL(ERR_MEMORY, "%s: out of memory while copying", s->path);
    for (;;) {
        ssize_t n = read(from, buf, COPY_BYTES);
        if (n < 0)
            rc = ERR_SET(ERR_IO, "%s: cannot read: %s", s->path, strerror(errno));
        if (n <= 0)
            break;
        ssize_t done = 0, k = 0;
        while (done < n && (k = write(to, buf + done, (size_t)(n - done))) > 0)
            done += k;
        if (done < n) {
            rc = ERR_SET(ERR_IO, "%s: cannot write %zd bytes: %s", s->next, n, strerror(errno));
            break;
        }
    }
    free(buf);
    return rc;
}

int record_swap_is_read(const struct record_swap *s)
{
    int fd = open(s->next, O_RDONLY | O_CLOEXEC);
    int busy = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
    if (fd >= 0)
        close(fd);
    return busy;
}

int record_swap_copy(struct record_swap *s)
{
    int rc, to = -1;
    int from = open(s->path, O_RDONLY | O_CLOEXEC);
    if (from < 0)
        FAIL(ERR_IO, "%s: cannot open: %s", s->path, strerror(errno));
    unlink(s->next); /* a reader may still have it open: leave that file to it */
    to = open(s->next, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    rc =
        to < 0 ? ERR_SET(ERR_IO, "%s: cannot create: %s", s->next, strerror(errno)) : copy_bytes(from, to, s);
    if (to >= 0 && close(to) && !rc)
        rc = ERR_SET(ERR_IO, "%s: cannot write: %s", s->next, strerror(errno));
    close(from);
    return rc;
}

int record_swap_publish(struct record_swap *s, int *exchanged)
{
    int swapped = renameat2(AT_FDCWD, s->next, AT_FDCWD, s->path, RENAME_EXCHANGE) == 0;
    if (!swapped) {
        TRY(record_swap_finish(s));
        TRY(record_swap_copy(s));
    }
    *exchanged = swapped;
    return 0;
}

int record_swap_finish(struct record_swap *s)
{
    if (rename(s->next, s->path))
        FAIL(ERR_IO, "%s: cannot rename to '%s': %s", s->next, s->path, strerror(errno));
    return 0;
}
