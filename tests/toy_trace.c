#include "tests/toy_trace.h"
#include "engine/err.h"
#include "experiments/record_file.h"
#include "experiments/workload.h"
#include <check.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *text(const char *s)
{
    char *copy = strdup(s);
    if (!copy)
        abort();
    return copy;
}

/* Room for one more row, by doubling: what there is room for, the allocator knows. */
static void *more(void *rows, int64_t n, size_t size)
{
    const size_t need = (size_t)(n + 1) * size;
    char *grown = malloc_usable_size(rows) < need ? realloc(rows, 2 * need) : rows;
    if (!grown)
        abort();
    memset(grown + (size_t)n * size, 0, size);
    return grown;
}

void toy_trace_init(struct trace *t, const char *path)
{
    *t = (struct trace){.path = text(path)};
    t->meta = (struct trace_meta){.schema = TRACE_SCHEMA,
                                  .status = text("complete"),
                                  .config = text("name: toy\nworkload:\n  limit: 0\n"),
                                  .version = text("0.1.0"),
                                  .git_commit = text("abc1234"),
                                  .build = text("gcc"),
                                  .device = text("Toy CPU"),
                                  .isa = text("portable"),
                                  .host = text("6.1"),
                                  .libraries = text("hdf5"),
                                  .threads = 1,
                                  .fingerprint = 0xfeed,
                                  .model = text("models/toy (llama)"),
                                  .started = text("2026-01-01T00:00:00Z"),
                                  .ended = text("2026-01-01T00:01:00Z"),
                                  .slice = text("0/1"),
                                  .trace_level = text("steps")};
}

int toy_trace_arm(struct trace *t, const char *label, const char *strategy, const char *rule, int lossy,
                  double temperature)
{
    char config[256];
    snprintf(config, sizeof config,
             "name: toy\nmodel: {path: toy}\ndraft: {strategy: %s, max_depth: %d}\nsampling: {rule: %s, "
             "temperature: %g}\n"
             "workload: {dataset: [toy.jsonl]}\n",
             strategy, strcmp(strategy, "none") ? 5 : 1, rule, temperature);
    t->arms = more(t->arms, t->n_arms, sizeof *t->arms);
    t->arms[t->n_arms] = (struct trace_arm){.label = text(label),
                                            .strategy = text(strategy),
                                            .rule = text(rule),
                                            .lossy = lossy,
                                            .config = text(config)};
    return (int)t->n_arms++;
}

int toy_trace_prompt(struct trace *t, const char *category, int index, int turn)
{
    t->prompts = more(t->prompts, t->n_prompts, sizeof *t->prompts);
    t->prompts[t->n_prompts] = (struct trace_prompt){.dataset = text("toy"),
                                                     .id = text("id"),
                                                     .category = text(category),
                                                     .index = index,
                                                     .turn = turn,
                                                     .text = text("?")};
    return (int)t->n_prompts++;
}

void toy_trace_request(struct trace *t, int arm, int prompt, int repeat, int64_t started, uint64_t hash)
{
    const struct trace_prompt *p = &t->prompts[prompt];
    t->requests = more(t->requests, t->n_requests, sizeof *t->requests);
    t->requests[t->n_requests++] =
        (struct trace_request){.arm = arm,
                               .prompt = prompt,
                               .repeat = repeat,
                               .request = workload_request_id(p->index, p->turn, repeat),
                               .seed = 1,
                               .step_begin = t->n_steps,
                               .concurrency = 1,
                               .ns_prefill = 1000000,
                               .ns_first = 1000000,
                               .started = started,
                               .hash = hash};
}

void toy_trace_step(struct trace *t, struct toy_step s)
{
    struct trace_request *r = &t->requests[t->n_requests - 1];
    t->steps = more(t->steps, t->n_steps, sizeof *t->steps);
    t->steps[t->n_steps++] = (struct trace_step){.request = t->n_requests - 1,
                                                 .position = (int)r->tokens + 1,
                                                 .proposed = s.proposed,
                                                 .depth = s.depth,
                                                 .accepted = s.accepted,
                                                 .emitted = s.emitted,
                                                 .flags = s.flags | (r->steps ? 0 : 1u),
                                                 .ns_total = s.ns};
    *(r->steps ? &r->ns_decode : &r->ns_first) += s.ns;
    r->steps++;
    r->tokens += s.emitted;
}

void toy_trace_node(struct trace *t, struct trace_node n)
{
    struct trace_step *s = &t->steps[t->n_steps - 1];
    if (t->n_nodes == 0 || t->nodes[t->n_nodes - 1].step != t->n_steps - 1)
        s->node_begin = t->n_nodes;
    if (strcmp(t->meta.trace_level, "full") != 0) {
        free(t->meta.trace_level);
        t->meta.trace_level = text("full");
    }
    n.step = t->n_steps - 1;
    t->nodes = more(t->nodes, t->n_nodes, sizeof *t->nodes);
    t->nodes[t->n_nodes++] = n;
}

static void put(struct record_file *f, enum record_table table, const void *rows, int64_t n)
{
    if (record_file_append(f, table, rows, n))
        abort();
}

void toy_trace_write(struct trace *t, const char *path)
{
    struct record_file *f;
    int64_t n = 0;
    for (int64_t i = 0; i < t->n_requests; i++) {
        t->requests[i].token_begin = n;
        n += t->requests[i].tokens;
    }
    struct trace_token *tokens = calloc((size_t)n + 1, sizeof *tokens);
    if (!tokens || record_file_create(&f, path, &t->meta, FILE_COMPACT))
        abort();
    for (int64_t i = 0; i < t->n_requests; i++)
        for (int64_t k = 0; k < t->requests[i].tokens; k++)
            tokens[t->requests[i].token_begin + k].request = i;
    put(f, RECORD_ARMS, t->arms, t->n_arms);
    put(f, RECORD_PROMPTS, t->prompts, t->n_prompts);
    put(f, RECORD_REQUESTS, t->requests, t->n_requests);
    put(f, RECORD_TOKENS, tokens, n);
    put(f, RECORD_STEPS, t->steps, t->n_steps);
    put(f, RECORD_NODES, t->nodes, t->n_nodes);
    free(tokens);
    if (record_file_close(f))
        abort();
}

void toy_trace_pass(struct trace *t, int rows, int seqs, int layers, int experts)
{
    struct trace_step *s = &t->steps[t->n_steps - 1];
    s->pass_rows = rows;
    s->pass_seqs = seqs;
    s->expert_layers = layers;
    s->experts = experts;
}

int toy_trace_score_arm(struct trace *t, const char *label, const char *numbers)
{
    char config[256];
    int arm = toy_trace_arm(t, label, "none", "greedy", 0, 0);
    snprintf(
        config, sizeof config,
        "name: toy\nmodel: {path: toy%s%s}\nworkload: {dataset: [toy.jsonl], mode: score, answers: a.h5}\n",
        *numbers ? ", " : "", numbers);
    free(t->arms[arm].config);
    t->arms[arm].config = text(config);
    return arm;
}

void toy_trace_score(struct trace *t, struct trace_score s)
{
    struct trace_request *r = &t->requests[t->n_requests - 1];
    t->scores = more(t->scores, t->n_scores, sizeof *t->scores);
    if (r->tokens == 0)
        r->score_begin = t->n_scores;
    s.request = t->n_requests - 1;
    s.position = (int)r->tokens + 1;
    t->scores[t->n_scores++] = s;
    r->tokens++;
    r->finish = TRACE_SCORED;
}

char *toy_trace_print(const struct trace *t, const struct analyze_opts *opts)
{
    char *out = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&out, &n);
    ck_assert_ptr_nonnull(f);
    ck_assert_msg(!analyze_trace(t, opts, f), "%s", err_text());
    fclose(f);
    return out;
}
