/* glob() does the folders as well: the *.h5 of a folder. A run keeps its own files beside the result as
 * NAME.h5.next and NAME.h5.lock, which no pattern for *.h5 matches. */
#include "experiments/analyze_input.h"
#include "engine/err.h"
#include "experiments/join.h"
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int add(struct analyze_input *in, const char *path)
{
    for (int i = 0; i < in->n; i++)
        if (!strcmp(in->path[i], path))
            return 0;
    char **grown = realloc(in->path, ((size_t)in->n + 1) * sizeof *grown), *copy = strdup(path);
    if (grown)
        in->path = grown;
    if (!grown || !copy) {
        free(copy);
        FAIL(ERR_MEMORY, "no memory for the names of %d files", in->n + 1);
    }
    in->path[in->n++] = copy;
    return 0;
}

/* arg: what the person wrote, for the sentence. */
static int add_pattern(struct analyze_input *in, const char *pattern, const char *arg, const char *what)
{
    glob_t found;
    int rc = glob(pattern, 0, NULL, &found);
    if (rc == GLOB_NOMATCH)
        FAIL(ERR_IO, "%s: expected %s, found none", arg, what);
    if (rc)
        FAIL(ERR_IO, "%s: cannot look for result files: %s", arg,
             rc == GLOB_NOSPACE ? "no memory" : "a folder cannot be read");
    for (size_t i = 0; i < found.gl_pathc && !rc; i++)
        rc = add(in, found.gl_pathv[i]);
    globfree(&found);
    return rc;
}

static int add_folder(struct analyze_input *in, const char *arg)
{
    char *pattern;
    if (asprintf(&pattern, "%s/*.h5", arg) < 0)
        FAIL(ERR_MEMORY, "%s: no memory for its name", arg);
    int rc = add_pattern(in, pattern, arg, "a folder with result files (*.h5)");
    free(pattern);
    return rc;
}

int analyze_input_init(struct analyze_input *in, const char *const *args, int n)
{
    struct analyze_input made = {0};
    int rc = 0;
    for (int i = 0; i < n && !rc; i++) {
        struct stat st;
        int exists = stat(args[i], &st) == 0;
        if (exists && S_ISDIR(st.st_mode))
            rc = add_folder(&made, args[i]);
        else if (!exists && strpbrk(args[i], "*?["))
            rc = add_pattern(&made, args[i], args[i], "a pattern that matches result files");
        else
            rc = add(&made, args[i]);
    }
    if (rc)
        analyze_input_deinit(&made);
    else
        *in = made;
    return rc;
}

void analyze_input_deinit(struct analyze_input *in)
{
    for (int i = 0; i < in->n; i++)
        free(in->path[i]);
    free(in->path);
    *in = (struct analyze_input){0};
}

int analyze_input_read(const struct analyze_input *in, unsigned parts, struct trace *out)
{
    struct trace all = {0}, part = {0};
    int rc = 0;
    for (int i = 0; i < in->n && !rc; i++) {
        rc = trace_read(&part, in->path[i], parts);
        if (!rc)
            rc = join_append(&all, &part);
    }
    trace_deinit(&part);
    if (rc)
        trace_deinit(&all);
    else
        *out = all;
    return rc;
}

uint64_t analyze_input_state(const struct analyze_input *in)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i < in->n; i++) {
        struct stat st = {0};
        if (stat(in->path[i], &st))
            continue;
        const uint64_t words[] = {(uint64_t)st.st_ino, (uint64_t)st.st_size, (uint64_t)st.st_mtim.tv_sec,
                                  (uint64_t)st.st_mtim.tv_nsec};
        for (int k = 0; k < 4; k++)
            hash = (hash ^ words[k]) * 0x100000001b3u;
    }
    return hash;
}
