/* record_meta: driven by the table of root attributes. */
#include "experiments/record_meta.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/record_rows.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int record_meta_copy(struct trace_meta *to, const struct trace_meta *from)
{
    struct trace_meta copy = *from;
    int n = 0;
    while (record_meta_fields[n].name)
        n++;
    TRY(record_own_texts(record_meta_fields, n, &copy));
    *to = copy;
    return 0;
}

int record_meta_set(char **text, const char *value)
{
    char *copy = strdup(value);
    if (!copy)
        FAIL(ERR_MEMORY, "record: out of memory while copying texts");
    free(*text);
    *text = copy;
    return 0;
}

char *record_meta_now(void)
{
    char now[32];
    struct tm utc;
    time_t t = time(NULL);
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &utc));
    return strdup(now);
}

/* The first line in which two texts differ. */
static int fail_config_differs(const char *path, const char *was, const char *now)
{
    while (*was && *now) {
        size_t n = strcspn(was, "\n"), m = strcspn(now, "\n");
        if (n != m || memcmp(was, now, n) != 0)
            break;
        was += n + (was[n] == '\n');
        now += m + (now[m] == '\n');
    }
    was += strspn(was, " ");
    now += strspn(now, " ");
    FAIL(ERR_CONFIG,
         "%s: cannot resume with another configuration: the file has '%.*s', this run has '%.*s'; "
         "use the same configuration or another file (-o)",
         path, (int)strcspn(was, "\n"), was, (int)strcspn(now, "\n"), now);
}

int record_meta_check(const char *path, const struct trace_meta *was, const struct trace_meta *now)
{
    if (strcmp(was->config, now->config) != 0)
        return fail_config_differs(path, was->config, now->config);
    if (was->fingerprint != now->fingerprint)
        FAIL(ERR_CONFIG,
             "%s: cannot resume with another model: the file has weights %016llx (%s), this run has %016llx "
             "(%s)",
             path, (unsigned long long)was->fingerprint, was->model, (unsigned long long)now->fingerprint,
             now->model);
    if (strcmp(was->slice, now->slice) != 0)
        FAIL(ERR_CONFIG, "%s: cannot resume with another slice: the file has %s, this run has %s", path,
             was->slice, now->slice);
    return 0;
}

int record_meta_continue(struct trace_meta *now, const struct trace_meta *was)
{
    static const char *const may_change[] = {"version", "git_commit", "build",    "device",
                                             "isa",     "host",       "libraries"};
    for (const struct field *f = record_meta_fields; f->name; f++) {
        int listed = 0;
        for (size_t i = 0; i < sizeof may_change / sizeof *may_change; i++)
            listed |= strcmp(f->name, may_change[i]) == 0;
        if (!listed)
            continue;
        char **text = (char **)(void *)((char *)now + f->offset), *both;
        const char *old = *(char *const *)(const void *)((const char *)was + f->offset);
        size_t n = strlen(old), m = strlen(*text);
        int same = n >= m && strcmp(old + n - m, *text) == 0;
        if (!same)
            log_warn("record: resuming with another %s: the file has '%s', this run has '%s'", f->name, old,
                     *text);
        if ((same ? asprintf(&both, "%s", old) : asprintf(&both, "%s; %s", old, *text)) < 0)
            FAIL(ERR_MEMORY, "record: out of memory while copying texts");
        free(*text);
        *text = both;
    }
    return record_meta_set(&now->started, was->started);
}
