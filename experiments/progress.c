/* progress: counts, and prints seldom. */
#include "experiments/progress.h"
#include "engine/clock.h"
#include <stdio.h>
#include <unistd.h>

static const int64_t every_terminal = 200000000, every_plain = 5000000000; /* ns */

void progress_init(struct progress *p, int quiet)
{
    *p = (struct progress){.quiet = quiet, .terminal = isatty(STDERR_FILENO), .label = ""};
}

void progress_begin(struct progress *p, const char *label, int64_t done, int64_t total)
{
    int64_t now = clock_ns();
    *p = (struct progress){.quiet = p->quiet,
                           .terminal = p->terminal,
                           .label = label,
                           .done = done,
                           .done_before = done,
                           .total = total,
                           .started = now,
                           .shown = now};
}

void progress_step(struct progress *p, const struct step_record *s)
{
    p->tokens += s->emitted;
    p->accepted += s->accepted;
    p->steps++;
}

void progress_request(struct progress *p)
{
    p->done++;
}

void progress_scored(struct progress *p, int tokens)
{
    p->tokens += tokens;
    p->done++;
}

/* "left 1:02:03", by the requests of this run so far. */
static void time_left(const struct progress *p, double elapsed, char *buf, size_t n)
{
    int64_t done = p->done - p->done_before;
    if (done <= 0) {
        snprintf(buf, n, "time left unknown");
        return;
    }
    long s = (long)(elapsed / (double)done * (double)(p->total - p->done) + 0.5);
    snprintf(buf, n, "%ld:%02ld:%02ld left", s / 3600, s / 60 % 60, s % 60);
}

void progress_show(struct progress *p)
{
    int64_t now = clock_ns();
    if (p->quiet || p->tokens == 0 || now - p->shown < (p->terminal ? every_terminal : every_plain))
        return;
    char left[48], length[48] = "";
    double elapsed = (double)(now - p->started) * 1e-9;
    time_left(p, elapsed, left, sizeof left);
    if (p->steps > 0)
        snprintf(length, sizeof length, ", acceptance length %.2f",
                 (double)(p->accepted + p->steps) / (double)p->steps);
    p->shown = now;
    fprintf(stderr,
            p->terminal ? "\r%s: %lld of %lld requests, %.1f tokens/s%s, %s\033[K"
                        : "%s: %lld of %lld requests, %.1f tokens/s%s, %s\n",
            p->label, (long long)p->done, (long long)p->total, (double)p->tokens / elapsed, length, left);
    fflush(stderr);
}

void progress_end(struct progress *p)
{
    if (!p->quiet && p->terminal && p->tokens > 0)
        fputs("\r\033[K", stderr);
}
