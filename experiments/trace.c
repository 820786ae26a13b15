/* trace: a result file in memory. What comes from a file is checked before anyone may use it (trace_check.h),
 * so that code behind trace_read never asks again. */
#include "experiments/trace.h"
#include "engine/err.h"
#include "experiments/record_file.h"
#include "experiments/record_rows.h"
#include "experiments/trace_check.h"
#include "experiments/trace_lean.h"
#include "experiments/trace_loop.h"
#include <stdlib.h>
#include <string.h>

uint64_t trace_hash_tokens(const int32_t *ids, int64_t n)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < n; i++)
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ ((uint32_t)ids[i] >> shift & 0xffu)) * 0x100000001b3u;
    return hash;
}

int trace_is_scored(const struct trace *t)
{
    return t->n_requests > 0 && t->requests[0].finish == TRACE_SCORED;
}

static int read_table(struct record_file *f, const char *path, enum record_table t, void *rows, int64_t *n)
{
    int64_t count = record_file_rows(f, t);
    size_t bytes = record_tables[t].row_bytes;
    void *memory = (uint64_t)count < SIZE_MAX / bytes ? calloc((size_t)count + 1, bytes) : NULL;
    if (!memory)
        FAIL(ERR_MEMORY, "%s: /%s: out of memory for %lld rows of %zu bytes", path, record_tables[t].name,
             (long long)count, bytes);
    int rc = record_file_read(f, t, 0, count, memory);
    if (rc) {
        free(memory);
        return rc;
    }
    memcpy(rows, &memory, sizeof memory);
    *n = count;
    return 0;
}

static int read_parts(struct trace *t, struct record_file *f, unsigned parts)
{
    TRY(record_file_meta(f, &t->meta));
    TRY(read_table(f, t->path, RECORD_ARMS, &t->arms, &t->n_arms));
    TRY(read_table(f, t->path, RECORD_PROMPTS, &t->prompts, &t->n_prompts));
    TRY(read_table(f, t->path, RECORD_REQUESTS, &t->requests, &t->n_requests));
    if (parts & TRACE_READ_TOKENS) {
        TRY(read_table(f, t->path, RECORD_PROMPT_TOKENS, &t->prompt_tokens, &t->n_prompt_tokens));
        TRY(read_table(f, t->path, RECORD_TOKENS, &t->tokens, &t->n_tokens));
    }
    if (parts & TRACE_READ_STEPS)
        TRY(read_table(f, t->path, RECORD_STEPS, &t->steps, &t->n_steps));
    if (parts & TRACE_READ_NODES)
        TRY(read_table(f, t->path, RECORD_NODES, &t->nodes, &t->n_nodes));
    if (parts & TRACE_READ_SCORES)
        TRY(read_table(f, t->path, RECORD_SCORES, &t->scores, &t->n_scores));
    if (parts & TRACE_READ_EXPERTS) {
        TRY(read_table(f, t->path, RECORD_STEP_EXPERTS, &t->step_experts, &t->n_step_experts));
        TRY(read_table(f, t->path, RECORD_NODE_EXPERTS, &t->node_experts, &t->n_node_experts));
    }
    return 0;
}

int trace_read(struct trace *t, const char *path, unsigned parts)
{
    struct trace read = {0};
    struct record_file *f = NULL;
    int rc;
    read.path = strdup(path);
    if (!read.path) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory while reading", path);
        goto out;
    }
    rc = record_file_open(&f, path, FILE_READ);
    if (rc)
        goto out;
    rc = read_parts(&read, f, parts);
    if (rc)
        goto out;
    rc = trace_check_requests(&read, f);
    if (rc)
        goto out;
    rc = trace_check_rows(&read, f);
    if (!rc && (parts & (TRACE_READ_LEAN | TRACE_READ_JUDGED)))
        rc = trace_lean_read(&read, f, parts);
    if (!rc && (parts & TRACE_READ_LOOPS))
        rc = trace_loops_read(&read, f);
out:
    record_file_close(f);
    if (rc)
        trace_deinit(&read);
    else
        *t = read;
    return rc;
}

void trace_meta_deinit(struct trace_meta *m)
{
    for (const struct field *f = record_meta_fields; f->name; f++)
        if (f->kind == FIELD_TEXT)
            free(*(char **)(void *)((char *)m + f->offset));
    *m = (struct trace_meta){0};
}

void trace_deinit(struct trace *t)
{
    record_free_texts(RECORD_ARMS, t->arms, t->n_arms);
    record_free_texts(RECORD_PROMPTS, t->prompts, t->n_prompts);
    trace_meta_deinit(&t->meta);
    free(t->path);
    free(t->arms);
    free(t->prompts);
    free(t->requests);
    free(t->tokens);
    free(t->prompt_tokens);
    free(t->steps);
    free(t->nodes);
    free(t->scores);
    free(t->step_experts);
    free(t->node_experts);
    free(t->lean);
    free(t->judged);
    free(t->loops);
    *t = (struct trace){0};
}
