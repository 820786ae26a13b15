/* record and trace: everything a run writes comes back, whatever kills the writer. */
#include "experiments/record.h"
#include "engine/err.h"
#include "experiments/record_file.h"
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    LAYERS = 3,
    TOP_K = 2,
    MAX_STEPS = 12,
    MAX_NODES = 6,
    KILL_ROUNDS = 60,
    KILL_REQUESTS = 8,
    READERS = 3,
    READ_REQUESTS = 120
};

static char dir[] = "/tmp/specbed-record-XXXXXX", path[64];
static int cannot_exchange; /* 1: this file system has no RENAME_EXCHANGE */

/* Stands in front of the C library's function, so that a file system without exchange can be had anywhere. */
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    if (cannot_exchange) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}

static void (*before_lock)(void); /* called once, as a file is about to be locked by HDF5 */
static int locked_fd;

/* The same for the call that HDF5 locks files with. */
int flock(int fd, int operation)
{
    if (before_lock && operation == (LOCK_SH | LOCK_NB))
        before_lock();
    return (int)syscall(SYS_flock, fd, operation);
}

static void make_folder(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/run.h5", dir);
}

static void remove_folder(void)
{
    const char *suffix[] = {"", ".next", ".lock"};
    for (int i = 0; i < 3; i++) {
        char name[80];
        snprintf(name, sizeof name, "%s%s", path, suffix[i]);
        unlink(name);
    }
    rmdir(dir);
}

static struct trace_meta some_meta(void)
{
    return (struct trace_meta){.schema = TRACE_SCHEMA,
                               .status = "running",
                               .config = "name: t\ndraft:\n  max_depth: 5\n",
                               .version = "0.1.0",
                               .git_commit = "abc1234",
                               .build = "gcc -O3",
                               .device = "a CPU",
                               .isa = "avx2",
                               .host = "Linux 6",
                               .libraries = "hdf5 1.10",
                               .threads = 2,
                               .fingerprint = 0xfedcba9876543210u,
                               .model = "models/toy (LlamaForCausalLM)",
                               .started = "2026-01-02T03:04:05Z",
                               .ended = "",
                               .slice = "0/1",
                               .trace_level = "full",
                               .load_bytes = 7000000000u,
                               .ns_load = 12,
                               .ns_read = 11};
}

/* Everything below is a function of the request's number: what was written can be computed again and
 * compared. */
static uint32_t draw(int request, int at, uint32_t below)
{
    uint64_t z = (uint64_t)request * 1000003u + (uint64_t)at + 1;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) % below);
}

struct fake_step {
    struct step_record s;
    int tokens[MAX_NODES + 1];
    float log_p[MAX_NODES + 1];
    struct node_record nodes[MAX_NODES];
    int distinct[LAYERS], chosen[(1 + MAX_NODES) * LAYERS * TOP_K];
};

static void make_step(struct fake_step *f, int request, int step)
{
    int at = 1000 * (step + 1), proposed = (int)draw(request, at, MAX_NODES + 1);
    int accepted = (int)draw(request, at + 1, (uint32_t)proposed + 1);
    *f = (struct fake_step){.s = {.position = 10 * step,
                                  .proposed = proposed,
                                  .depth = proposed,
                                  .accepted = accepted,
                                  .emitted = accepted + 1,
                                  .flags = draw(request, at + 2, 16),
                                  .pass_rows = proposed + 1,
                                  .pass_seqs = 1,
                                  .ns_draft = 1 + step,
                                  .ns_verify = 2 + step,
                                  .ns_accept = 3,
                                  .ns_host = 4,
                                  .ns_total = 10 + 2 * step}};
    for (int i = 0; i < f->s.emitted; i++) {
        f->tokens[i] = (int)draw(request, at + 10 + i, 50000);
        f->log_p[i] = -(float)draw(request, at + 30 + i, 1000) / 128;
    }
    for (int i = 0; i < proposed; i++)
        f->nodes[i] = (struct node_record){.token = (int)draw(request, at + 50 + i, 50000),
                                           .parent = i - 1,
                                           .depth = i + 1,
                                           .accepted = i < accepted,
                                           .log_q = -0.5f * (float)i,
                                           .log_p = -0.25f * (float)i,
                                           .rank = i + 1,
                                           .entropy = 1.5f,
                                           .gap = 2.5f};
    for (int i = 0; i < LAYERS; i++)
        f->distinct[i] = 1 + (int)draw(request, at + 70 + i, 128);
    for (int i = 0; i < (1 + proposed) * LAYERS * TOP_K; i++)
        f->chosen[i] = (int)draw(request, at + 80 + i, 128);
    f->s.expert_layers = LAYERS;
    f->s.top_k = TOP_K;
    f->s.distinct = f->distinct;
    f->s.chosen = request % 3 ? f->chosen : NULL;
    f->s.tokens = f->tokens;
    f->s.log_p = f->log_p;
    f->s.nodes = f->nodes;
}

static int steps_of(int request)
{
    return 1 + (int)draw(request, 1, MAX_STEPS);
}

static int write_request(struct record *r, int i)
{
    struct trace_arm arm = {"an arm", "ngram", "greedy", 0, "name: t\n"};
    char id[16], *name = id;
    snprintf(id, sizeof id, "p%d", i / 2);
    struct trace_prompt p = {"tests", name, "catégorie", i / 2, 0, "Grüße, 世界\n\"?\""};
    struct trace_request head = {
        .repeat = i % 2, .request = (uint32_t)i * 7 + 1, .seed = -3 - i, .concurrency = 4, .started = 5 + i};
    struct record_request *q;
    int prompt[40], n_prompt = 1 + (int)draw(i, 2, 40), answer[MAX_STEPS * (MAX_NODES + 1)], n = 0;
    for (int k = 0; k < n_prompt; k++)
        prompt[k] = (int)draw(i, 100 + k, 50000);
    TRY(record_arm(r, &arm, &head.arm));
    TRY(record_prompt(r, &p, &head.prompt));
    TRY(record_begin(r, &head, prompt, n_prompt, &q));
    for (int s = 0; s < steps_of(i); s++) {
        struct fake_step f;
        make_step(&f, i, s);
        TRY(record_step(q, &f.s));
        memcpy(answer + n, f.tokens, (size_t)f.s.emitted * sizeof *answer);
        n += f.s.emitted;
    }
    struct spec_finished f = {.reason = FINISH_LENGTH,
                              .tokens = answer,
                              .n = n,
                              .steps = steps_of(i),
                              .ns_prefill = 100 + i,
                              .ns_first = 200 + i,
                              .ns_decode = 300 + i};
    return record_finish(r, q, &f);
}

/* Request i as an answer of i + 1 tokens that was scored. */
static int score_request(struct record *r, int i)
{
    struct trace_arm arm = {"fp8", "none", "greedy", 0, "name: t\n"};
    struct trace_prompt p = {"tests", "p", "c", i, 0, "?"};
    struct trace_request head = {.request = (uint32_t)i, .concurrency = 1};
    struct trace_score scores[32];
    struct record_request *q;
    ck_assert_int_lt(i, 32);
    for (int k = 0; k <= i; k++)
        scores[k] = (struct trace_score){.request = 99,
                                         .position = 2 + k,
                                         .token = 10 * i + k,
                                         .log_p = -0.5f * (float)k,
                                         .rank = 1 + k,
                                         .entropy = 0.25f * (float)i,
                                         .top1 = k == 0,
                                         .agree = k % 2,
                                         .kl = 0.125f * (float)k};
    TRY(record_arm(r, &arm, &head.arm));
    TRY(record_prompt(r, &p, &head.prompt));
    TRY(record_begin(r, &head, (int[]){3, 4}, 2, &q));
    return record_finish_scored(r, q, scores, i + 1, 7, 9);
}

static void check_experts(const struct trace *t, const struct trace_step *s, const struct fake_step *f)
{
    const int chosen = f->s.chosen ? (1 + s->proposed) * LAYERS * TOP_K : 0;
    if (t->meta.schema < 3) {
        ck_assert(s->expert_layers == 0 && s->top_k == 0 && s->chosen == 0);
        return;
    }
    ck_assert_int_eq(s->expert_layers, LAYERS);
    ck_assert_int_eq(s->top_k, TOP_K);
    ck_assert_int_eq(s->chosen, chosen);
    ck_assert_int_eq(s->experts, f->distinct[0] + f->distinct[1] + f->distinct[2]);
    ck_assert_mem_eq(t->step_experts + s->expert_begin, f->distinct, sizeof f->distinct);
    ck_assert_mem_eq(t->node_experts + s->chosen_begin, f->chosen, (size_t)chosen * sizeof *f->chosen);
}

static void check_step(const struct trace *t, int request, int step)
{
    struct fake_step f;
    make_step(&f, request, step);
    int64_t row = t->requests[request].step_begin + step;
    const struct trace_step *s = &t->steps[row];
    ck_assert_int_eq(s->request, request);
    ck_assert_int_eq(s->position, f.s.position);
    ck_assert_int_eq(s->proposed, f.s.proposed);
    ck_assert_int_eq(s->depth, f.s.depth);
    ck_assert_int_eq(s->accepted, f.s.accepted);
    ck_assert_int_eq(s->emitted, f.s.emitted);
    ck_assert_uint_eq(s->flags, f.s.flags);
    ck_assert_int_eq(s->pass_rows, f.s.pass_rows);
    ck_assert_int_eq(s->pass_seqs, f.s.pass_seqs);
    ck_assert_int_eq(s->ns_draft, f.s.ns_draft);
    ck_assert_int_eq(s->ns_verify, f.s.ns_verify);
    ck_assert_int_eq(s->ns_accept, f.s.ns_accept);
    ck_assert_int_eq(s->ns_host, f.s.ns_host);
    ck_assert_int_eq(s->ns_total, f.s.ns_total);
    check_experts(t, s, &f);
    for (int i = 0; i < f.s.proposed; i++) {
        const struct trace_node *n = &t->nodes[s->node_begin + i];
        ck_assert_int_eq(n->step, row);
        ck_assert_int_eq(n->token, f.nodes[i].token);
        ck_assert_int_eq(n->parent, f.nodes[i].parent);
        ck_assert_int_eq(n->depth, f.nodes[i].depth);
        ck_assert_int_eq(n->accepted, f.nodes[i].accepted);
        ck_assert_int_eq(n->rank, f.nodes[i].rank);
        ck_assert(n->log_q == f.nodes[i].log_q && n->log_p == f.nodes[i].log_p);
        ck_assert(n->entropy == f.nodes[i].entropy && n->gap == f.nodes[i].gap);
    }
}

static void check_request(const struct trace *t, int i)
{
    const struct trace_request *q = &t->requests[i];
    int64_t n = 0;
    ck_assert_int_eq(q->arm, 0);
    ck_assert_int_eq(q->prompt, i / 2);
    ck_assert_int_eq(q->repeat, i % 2);
    ck_assert_uint_eq(q->request, (uint32_t)i * 7 + 1);
    ck_assert_int_eq(q->seed, -3 - i);
    ck_assert_int_eq(q->concurrency, 4);
    ck_assert_int_eq(q->finish, FINISH_LENGTH);
    ck_assert_int_eq(q->started, 5 + i);
    ck_assert_int_eq(q->ns_prefill, 100 + i);
    ck_assert_int_eq(q->ns_first, 200 + i);
    ck_assert_int_eq(q->ns_decode, 300 + i);
    ck_assert_int_eq(q->steps, steps_of(i));
    ck_assert_int_eq(q->prompt_tokens, 1 + draw(i, 2, 40));
    for (int k = 0; k < q->prompt_tokens; k++)
        ck_assert_int_eq(t->prompt_tokens[q->prompt_begin + k], draw(i, 100 + k, 50000));
    for (int s = 0; s < steps_of(i); s++) {
        struct fake_step f;
        make_step(&f, i, s);
        check_step(t, i, s);
        for (int k = 0; k < f.s.emitted; k++, n++) {
            ck_assert_int_eq(t->tokens[q->token_begin + n].id, f.tokens[k]);
            ck_assert_int_eq(t->tokens[q->token_begin + n].request, i);
            ck_assert(t->tokens[q->token_begin + n].log_p == f.log_p[k]);
        }
    }
    ck_assert_int_eq(q->tokens, n);
}

/* The file holds requests 0 .. n - 1 and nothing else; returns n. status NULL: any. */
static int64_t check_file(const char *status)
{
    struct trace t;
    ck_assert_msg(trace_read(&t, path, TRACE_READ_ALL) == 0, "%s", err_text());
    if (status)
        ck_assert_str_eq(t.meta.status, status);
    for (int i = 0; i < t.n_requests; i++)
        check_request(&t, i);
    int64_t n = t.n_requests, tokens = 0, steps = 0, nodes = 0, prompts = 0;
    for (int i = 0; i < n; i++) {
        tokens += t.requests[i].tokens;
        steps += t.requests[i].steps;
        prompts += t.requests[i].prompt_tokens;
        for (int s = 0; s < t.requests[i].steps; s++)
            nodes += t.steps[t.requests[i].step_begin + s].proposed;
    }
    ck_assert_int_eq(t.n_tokens, tokens);
    ck_assert_int_eq(t.n_steps, steps);
    ck_assert_int_eq(t.n_nodes, nodes);
    ck_assert_int_eq(t.n_prompt_tokens, prompts);
    trace_deinit(&t);
    return n;
}

static struct record *open_record(enum record_mode mode)
{
    struct trace_meta meta = some_meta();
    struct record *r = NULL;
    ck_assert_msg(record_open(&r, path, &meta, mode) == 0, "%s", err_text());
    return r;
}

static void write_file(int n)
{
    struct record *r = open_record(RECORD_FORCE);
    for (int i = 0; i < n; i++)
        ck_assert_msg(write_request(r, i) == 0, "%s", err_text());
    ck_assert_msg(record_close(r, "complete") == 0, "%s", err_text());
}

static int exists(const char *suffix)
{
    char name[80];
    snprintf(name, sizeof name, "%s%s", path, suffix);
    return access(name, F_OK) == 0;
}

#define ck_fails(call, code, ...)                                                                            \
    do {                                                                                                     \
        const char *part[] = {__VA_ARGS__};                                                                  \
        ck_assert_int_eq(call, code);                                                                        \
        for (size_t i_ = 0; i_ < sizeof part / sizeof *part; i_++)                                           \
            ck_assert_msg(strstr(err_text(), part[i_]) != NULL, "no '%s' in: %s", part[i_], err_text());     \
    } while (0)

START_TEST(every_field_of_every_table_survives_the_round_trip)
{
    struct trace t;
    write_file(9);
    ck_assert_int_eq(check_file("complete"), 9);
    ck_assert(!exists(".next") && !exists(".lock"));
    ck_assert_int_eq(trace_read(&t, path, TRACE_READ_ALL), 0);
    ck_assert_int_eq(t.n_arms, 1);
    ck_assert_str_eq(t.arms[0].label, "an arm");
    ck_assert_str_eq(t.arms[0].strategy, "ngram");
    ck_assert_str_eq(t.arms[0].rule, "greedy");
    ck_assert_str_eq(t.arms[0].config, "name: t\n");
    ck_assert_int_eq(t.arms[0].lossy, 0);
    ck_assert_int_eq(t.n_prompts, 5);
    for (int i = 0; i < 5; i++) {
        char id[16];
        snprintf(id, sizeof id, "p%d", i);
        ck_assert_str_eq(t.prompts[i].id, id);
        ck_assert_str_eq(t.prompts[i].dataset, "tests");
        ck_assert_str_eq(t.prompts[i].category, "catégorie");
        ck_assert_str_eq(t.prompts[i].text, "Grüße, 世界\n\"?\"");
        ck_assert_int_eq(t.prompts[i].index, i);
        ck_assert_int_eq(t.prompts[i].turn, 0);
    }
    trace_deinit(&t);
}
END_TEST

START_TEST(scores_survive_the_round_trip)
{
    struct trace t;
    struct record *r = open_record(RECORD_FORCE);
    int64_t row = 0;
    for (int i = 0; i < 9; i++)
        ck_assert_msg(score_request(r, i) == 0, "%s", err_text());
    ck_assert_int_eq(record_close(r, "interrupted"), 0);
    r = open_record(RECORD_RESUME);
    ck_assert_int_eq(record_find(r, 0, 8), 8);
    ck_assert_int_eq(record_find(r, 0, 9), -1);
    ck_assert_msg(score_request(r, 9) == 0, "%s", err_text());
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_msg(trace_read(&t, path, TRACE_READ_ALL) == 0, "%s", err_text());
    ck_assert_int_eq(trace_is_scored(&t), 1);
    ck_assert_int_eq(t.n_requests, 10);
    ck_assert_int_eq(t.n_scores, 55);
    ck_assert_int_eq(t.n_tokens, 55);
    for (int i = 0; i < 10; i++) {
        const struct trace_request *q = &t.requests[i];
        ck_assert(q->finish == TRACE_SCORED && q->steps == 0 && q->tokens == i + 1 && q->score_begin == row);
        ck_assert(q->ns_prefill == 7 && q->ns_first == 9 && q->ns_decode == 0);
        for (int k = 0; k <= i; k++, row++) {
            const struct trace_score *s = &t.scores[row];
            ck_assert(s->request == i && s->position == 2 + k && s->token == 10 * i + k && s->rank == 1 + k);
            ck_assert(s->log_p == -0.5f * (float)k && s->entropy == 0.25f * (float)i);
            ck_assert(s->top1 == (k == 0) && s->agree == k % 2 && s->kl == 0.125f * (float)k);
            ck_assert_int_eq(t.tokens[q->token_begin + k].id, s->token);
            ck_assert(t.tokens[q->token_begin + k].log_p == s->log_p);
        }
    }
    trace_deinit(&t);
}
END_TEST

/* The type without the fields that came after a schema; *gone: how many there were. */
static hid_t older_type(enum record_table t, hid_t type, int schema, int *gone)
{
    hid_t old = H5Tcreate(H5T_COMPOUND, H5Tget_size(type));
    *gone = 0;
    for (int i = 0; i < record_tables[t].n_fields; i++) {
        const struct field *field = &record_tables[t].fields[i];
        int at = H5Tget_member_index(type, field->name);
        if (field->since > schema) {
            ++*gone;
            continue;
        }
        hid_t member = H5Tget_member_type(type, (unsigned)at);
        H5Tinsert(old, field->name, H5Tget_member_offset(type, (unsigned)at), member);
        H5Tclose(member);
    }
    return old;
}

static void make_table_older(hid_t file, enum record_table t, int schema)
{
    const char *name = record_tables[t].name;
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT), type = H5Dget_type(set), space = H5Dget_space(set);
    int gone;
    hid_t old = older_type(t, type, schema, &gone);
    hsize_t n = (hsize_t)H5Sget_simple_extent_npoints(space);
    void *rows = calloc(n + 1, H5Tget_size(type));
    ck_assert_ptr_nonnull(rows);
    ck_assert_int_ge(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows), 0);
    H5Dclose(set);
    H5Sclose(space);
    if (gone > 0) {
        space = H5Screate_simple(1, &n, NULL);
        ck_assert_int_ge(H5Ldelete(file, name, H5P_DEFAULT), 0);
        set = H5Dcreate2(file, name, old, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        ck_assert_int_ge(H5Dwrite(set, old, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows), 0);
        H5Dclose(set);
        H5Sclose(space);
    }
    H5Tclose(old);
    H5Tclose(type);
    free(rows);
}

/* What an older schema did not have goes: whole tables, and fields of others. */
static void make_older(int32_t schema)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    for (int t = 0; t < RECORD_TABLES; t++)
        if (record_tables[t].since > schema)
            ck_assert_int_ge(H5Ldelete(file, record_tables[t].name, H5P_DEFAULT), 0);
        else if (t == RECORD_REQUESTS || t == RECORD_STEPS)
            make_table_older(file, (enum record_table)t, schema);
    for (const struct field *m = record_meta_fields; m->name; m++)
        if (m->since > schema)
            ck_assert_int_ge(H5Adelete(file, m->name), 0);
    hid_t attr = H5Aopen(file, "schema", H5P_DEFAULT);
    ck_assert_int_ge(H5Awrite(attr, H5T_NATIVE_INT32, &schema), 0);
    H5Aclose(attr);
    H5Fclose(file);
}

static void claim_schema(int32_t schema)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), attr = H5Aopen(file, "schema", H5P_DEFAULT);
    ck_assert_int_ge(H5Awrite(attr, H5T_NATIVE_INT32, &schema), 0);
    H5Aclose(attr);
    H5Fclose(file);
}

START_TEST(a_file_of_an_older_schema_is_read_and_resumed)
{
    struct trace t;
    write_file(5);
    make_older(_i);
    ck_assert_int_eq(check_file("complete"), 5);
    ck_assert_msg(trace_read(&t, path, TRACE_READ_ALL) == 0, "%s", err_text());
    ck_assert_int_eq(t.meta.schema, _i);
    ck_assert(t.n_scores == 0 && t.n_step_experts == 0 && t.n_node_experts == 0);
    ck_assert(t.meta.load_bytes == 0 && t.meta.ns_load == 0 && t.meta.ns_read == 0);
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(t.requests[i].score_begin, 0);
    trace_deinit(&t);
    struct record *r = open_record(RECORD_RESUME);
    ck_assert_msg(write_request(r, 5) == 0, "%s", err_text());
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_int_eq(trace_read(&t, path, TRACE_READ_ALL), 0);
    ck_assert_int_eq(t.meta.schema, TRACE_SCHEMA);
    ck_assert_int_eq(t.n_requests, 6);
    ck_assert_int_eq(t.n_step_experts, LAYERS * steps_of(5));
    trace_deinit(&t);
}
END_TEST

START_TEST(a_file_has_what_its_schema_brought)
{
    struct trace t;
    write_file(2);
    make_older(1);
    claim_schema(2);
    ck_fails(trace_read(&t, path, 0), ERR_FORMAT, path, "'score_begin'", "no such field");
    write_file(2);
    make_older(2);
    claim_schema(3);
    ck_fails(trace_read(&t, path, 0), ERR_FORMAT, path, "/steps", "'expert_layers'", "no such field");
}
END_TEST

START_TEST(every_attribute_survives_the_round_trip)
{
    struct trace t;
    struct trace_meta m = some_meta();
    write_file(0);
    ck_assert_int_eq(trace_read(&t, path, TRACE_READ_ALL), 0);
    ck_assert_int_eq(t.meta.schema, TRACE_SCHEMA);
    ck_assert_int_eq(t.meta.threads, 2);
    ck_assert(t.meta.load_bytes == m.load_bytes && t.meta.ns_load == 12 && t.meta.ns_read == 11);
    ck_assert_uint_eq(t.meta.fingerprint, m.fingerprint);
    for (const struct field *f = record_meta_fields; f->name; f++) {
        if (f->kind != FIELD_TEXT || !strcmp(f->name, "status") || !strcmp(f->name, "ended"))
            continue;
        ck_assert_str_eq(*(char **)(void *)((char *)&t.meta + f->offset),
                         *(char **)(void *)((char *)&m + f->offset));
    }
    ck_assert_uint_eq(strlen(t.meta.ended), strlen("2026-01-02T03:04:05Z"));
    trace_deinit(&t);
}
END_TEST

START_TEST(parts_that_were_not_asked_for_are_not_read)
{
    struct trace t;
    write_file(3);
    ck_assert_int_eq(trace_read(&t, path, TRACE_READ_REQUESTS), 0);
    ck_assert_int_eq(t.n_requests, 3);
    ck_assert_int_eq(t.n_tokens + t.n_prompt_tokens + t.n_steps + t.n_nodes, 0);
    trace_deinit(&t);
    ck_assert_int_eq(trace_read(&t, path, TRACE_READ_STEPS), 0);
    ck_assert(t.n_steps > 0 && t.n_nodes == 0);
    trace_deinit(&t);
}
END_TEST

START_TEST(a_trace_of_steps_alone_has_no_nodes)
{
    struct trace_meta meta = some_meta();
    struct trace_request head = {.concurrency = 1};
    struct record *r;
    struct record_request *q;
    struct fake_step f;
    struct trace t;
    meta.trace_level = "steps";
    ck_assert_int_eq(record_open(&r, path, &meta, RECORD_NEW), 0);
    struct trace_arm arm = {"", "", "", 0, ""};
    struct trace_prompt p = {"", "", "", 0, 0, ""};
    ck_assert_int_eq(record_arm(r, &arm, &head.arm), 0);
    ck_assert_int_eq(record_prompt(r, &p, &head.prompt), 0);
    ck_assert_int_eq(record_begin(r, &head, (int[]){1}, 1, &q), 0);
    make_step(&f, 0, 0);
    f.s.nodes = NULL;
    ck_assert_int_eq(record_step(q, &f.s), 0);
    struct spec_finished done = {.tokens = f.tokens, .n = f.s.emitted, .steps = 1, .reason = FINISH_LENGTH};
    ck_assert_int_eq(record_finish(r, q, &done), 0);
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_msg(trace_read(&t, path, TRACE_READ_ALL) == 0, "%s", err_text());
    ck_assert_int_eq(t.n_nodes, 0);
    ck_assert_int_eq(t.steps[0].proposed, f.s.proposed);
    trace_deinit(&t);
}
END_TEST

START_TEST(the_file_is_whole_after_every_request)
{
    struct record *r = open_record(RECORD_NEW);
    ck_assert_int_eq(check_file("running"), 0);
    for (int i = 0; i < 12; i++) {
        ck_assert_int_eq(write_request(r, i), 0);
        ck_assert_int_eq(check_file("running"), i + 1);
    }
    ck_assert_int_eq(record_close(r, "interrupted"), 0);
    ck_assert_int_eq(check_file("interrupted"), 12);
}
END_TEST

START_TEST(a_file_system_without_exchange_gets_copies)
{
    cannot_exchange = 1;
    struct record *r = open_record(RECORD_NEW);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(write_request(r, i), 0);
        ck_assert_int_eq(check_file("running"), i + 1);
    }
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_int_eq(check_file("complete"), 5);
    ck_assert(!exists(".next") && !exists(".lock"));
}
END_TEST

START_TEST(a_reader_keeps_the_file_it_opened)
{
    struct record *r = open_record(RECORD_NEW);
    struct record_file *f;
    ck_assert_int_eq(write_request(r, 0), 0);
    ck_assert_int_eq(record_file_open(&f, path, FILE_READ), 0);
    for (int i = 1; i < 6; i++)
        ck_assert_msg(write_request(r, i) == 0, "%s", err_text());
    struct trace_request q;
    ck_assert_int_eq(record_file_rows(f, RECORD_REQUESTS), 1);
    ck_assert_int_eq(record_file_read(f, RECORD_REQUESTS, 0, 1, &q), 0);
    ck_assert_uint_eq(q.request, 1);
    ck_assert_int_eq(record_file_close(f), 0);
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_int_eq(check_file("complete"), 6);
}
END_TEST

START_TEST(requests_that_grow_together_are_kept_apart)
{
    struct record *r = open_record(RECORD_NEW);
    struct record_request *first;
    struct trace_request head = {.concurrency = 1};
    struct fake_step f;
    make_step(&f, 99, 0);
    ck_assert_int_eq(record_begin(r, &head, (int[]){1, 2}, 2, &first), 0);
    ck_assert_int_eq(record_step(first, &f.s), 0);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(write_request(r, i), 0);
    record_drop(r, first);
    ck_assert_int_eq(write_request(r, 3), 0);
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_int_eq(check_file("complete"), 4);
}
END_TEST

/* A child that writes requests [0, KILL_REQUESTS) and tells through shared memory how many record_finish
 * returned. */
static pid_t start_writer(volatile int *finished, int n)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct trace_meta meta = some_meta();
        struct record *r;
        if (record_open(&r, path, &meta, RECORD_FORCE))
            _exit(9);
        *finished = 0;
        for (int i = 0; i < n; i++) {
            if (write_request(r, i))
                _exit(8);
            *finished = i + 1;
        }
        _exit(record_close(r, "complete") ? 7 : 0);
    }
    return pid;
}

/* What a writer does between a reader's open and its lock: it puts the other file there and locks this one.
 */
static void exchange_now(void)
{
    char other[80];
    snprintf(other, sizeof other, "%s.other", path);
    locked_fd = open(path, O_RDONLY);
    before_lock = NULL;
    ck_assert(locked_fd >= 0 && flock(locked_fd, LOCK_EX | LOCK_NB) == 0 && rename(other, path) == 0);
}

START_TEST(a_reader_that_comes_during_an_exchange_gets_the_new_file)
{
    char other[80];
    write_file(3);
    snprintf(other, sizeof other, "%s.other", path);
    ck_assert_int_eq(rename(path, other), 0);
    write_file(2);
    before_lock = exchange_now;
    ck_assert_int_eq(check_file("complete"), 3);
    ck_assert(!before_lock);
    ck_assert_int_eq(close(locked_fd), 0);
}
END_TEST

START_TEST(a_file_that_stays_locked_is_an_error)
{
    struct trace t;
    write_file(1);
    const int fd = open(path, O_RDONLY);
    ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
    ck_fails(trace_read(&t, path, 0), ERR_IO, path, "another program has it open for writing");
    close(fd);
    ck_assert_int_eq(check_file("complete"), 1);
}
END_TEST

/* Readers come at any moment: also when the file they opened is exchanged before they have locked it. */
START_TEST(readers_are_never_refused_while_a_writer_is_at_work)
{
    volatile int *finished = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status = 0, reads = 0;
    int64_t seen = 0;
    pid_t reader[READERS];
    *finished = -1;
    pid_t writer = start_writer(finished, READ_REQUESTS);
    while (*finished < 0)
        usleep(50);
    for (int i = 0; i < READERS; i++)
        if ((reader[i] = fork()) == 0) {
            while (*finished < READ_REQUESTS)
                check_file(NULL); /* a failed assertion ends it with another code */
            _exit(0);
        }
    while (waitpid(writer, &status, WNOHANG) == 0) {
        const int64_t n = check_file(NULL);
        ck_assert_int_ge(n, seen);
        seen = n;
        reads++;
    }
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "writer ended with %#x", status);
    for (int i = 0; i < READERS; i++) {
        ck_assert_int_eq(waitpid(reader[i], &status, 0), reader[i]);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "reader ended with %#x", status);
    }
    ck_assert_int_gt(reads, 0);
    ck_assert_int_eq(check_file("complete"), READ_REQUESTS);
    munmap((void *)finished, 4096);
}
END_TEST

START_TEST(a_killed_writer_leaves_every_finished_request_and_nothing_else)
{
    volatile int *finished = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int killed = 0;
    for (int round = 0; round < KILL_ROUNDS; round++) {
        int status;
        *finished = -1;
        unlink(path);
        pid_t pid = start_writer(finished, KILL_REQUESTS);
        while (*finished < 0 && waitpid(pid, &status, WNOHANG) == 0)
            usleep(50);
        usleep(draw(round, 7, 20000));
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        killed += WIFSIGNALED(status);
        int64_t n = check_file(WIFSIGNALED(status) ? NULL : "complete");
        ck_assert_msg(n == *finished || n == *finished + 1, "round %d: finished %d, found %ld", round,
                      *finished, (long)n);
        struct record *r = open_record(RECORD_RESUME);
        for (int i = 0; i < KILL_REQUESTS; i++) {
            ck_assert_int_eq(record_find(r, 0, (uint32_t)i * 7 + 1), i < n ? i : -1);
            if (i >= n)
                ck_assert_int_eq(write_request(r, i), 0);
        }
        ck_assert_int_eq(record_close(r, "complete"), 0);
        ck_assert_int_eq(check_file("complete"), KILL_REQUESTS);
        ck_assert(!exists(".next") && !exists(".lock"));
    }
    ck_assert_msg(killed > KILL_ROUNDS / 4, "only %d of %d writers were killed in time", killed, KILL_ROUNDS);
}
END_TEST

static char *read_bytes(size_t *n)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    ck_assert_int_eq(fstat(fd, &st), 0);
    char *bytes = malloc((size_t)st.st_size);
    ck_assert_int_eq(read(fd, bytes, (size_t)st.st_size), st.st_size);
    close(fd);
    *n = (size_t)st.st_size;
    struct trace t;
    ck_assert_int_eq(trace_read(&t, path, 0), 0);
    char *ended = memmem(bytes, *n, t.meta.ended, strlen(t.meta.ended));
    ck_assert_ptr_nonnull(ended);
    memset(ended, '-', strlen(t.meta.ended));
    trace_deinit(&t);
    return bytes;
}

START_TEST(the_same_run_writes_the_same_bytes_even_when_resumed)
{
    size_t n[3];
    char *bytes[3];
    for (int i = 0; i < 2; i++) {
        write_file(7);
        bytes[i] = read_bytes(&n[i]);
    }
    write_file(3);
    struct record *r = open_record(RECORD_RESUME);
    for (int i = 3; i < 7; i++)
        ck_assert_int_eq(write_request(r, i), 0);
    ck_assert_int_eq(record_close(r, "complete"), 0);
    bytes[2] = read_bytes(&n[2]);
    for (int i = 1; i < 3; i++) {
        ck_assert_uint_eq(n[0], n[i]);
        ck_assert_msg(memcmp(bytes[0], bytes[i], n[0]) == 0, "file %d differs", i);
    }
    for (int i = 0; i < 3; i++)
        free(bytes[i]);
}
END_TEST

START_TEST(resuming_finds_requests_tokens_and_small_rows)
{
    write_file(4);
    struct record *r = open_record(RECORD_RESUME);
    struct trace t;
    int32_t *ids;
    int64_t n;
    int row = -1;
    ck_assert_int_eq(trace_read(&t, path, TRACE_READ_ALL), 0);
    ck_assert_str_eq(t.meta.status, "running");
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(record_find(r, 0, t.requests[i].request), i);
        ck_assert_int_eq(record_tokens(r, i, &ids, &n), 0);
        ck_assert_int_eq(n, t.requests[i].tokens);
        ck_assert_uint_eq(trace_hash_tokens(ids, n), t.requests[i].hash);
        free(ids);
    }
    ck_assert_int_eq(record_find(r, 1, t.requests[0].request), -1);
    ck_assert_int_eq(record_arm(r, &t.arms[0], &row), 0);
    ck_assert_int_eq(row, 0);
    for (int i = 0; i < t.n_prompts; i++) {
        ck_assert_int_eq(record_prompt(r, &t.prompts[i], &row), 0);
        ck_assert_int_eq(row, i);
    }
    trace_deinit(&t);
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_int_eq(check_file("complete"), 4);
}
END_TEST

START_TEST(a_file_is_overwritten_only_by_force)
{
    struct trace_meta meta = some_meta();
    struct record *r = NULL;
    write_file(2);
    ck_fails(record_open(&r, path, &meta, RECORD_NEW), ERR_CONFIG, path, "--resume", "--force");
    ck_assert_int_eq(check_file("complete"), 2);
    ck_assert(!exists(".lock"));
    ck_assert_int_eq(record_open(&r, path, &meta, RECORD_FORCE), 0);
    ck_assert_int_eq(check_file("running"), 0);
    ck_assert_int_eq(record_close(r, "complete"), 0);
}
END_TEST

START_TEST(resuming_refuses_another_run_and_says_what_differs)
{
    struct trace_meta meta = some_meta();
    struct record *r = NULL;
    write_file(2);
    meta.config = "name: t\ndraft:\n  max_depth: 3\n";
    ck_fails(record_open(&r, path, &meta, RECORD_RESUME), ERR_CONFIG, path, "'max_depth: 5'",
             "'max_depth: 3'");
    meta = some_meta();
    meta.config = "name: t\ndraft:\n  max_depth: 5\nextra: 1\n";
    ck_fails(record_open(&r, path, &meta, RECORD_RESUME), ERR_CONFIG, "''", "'extra: 1'");
    meta = some_meta();
    meta.fingerprint++;
    ck_fails(record_open(&r, path, &meta, RECORD_RESUME), ERR_CONFIG, "fedcba9876543210", "fedcba9876543211");
    meta = some_meta();
    meta.slice = "1/2";
    ck_fails(record_open(&r, path, &meta, RECORD_RESUME), ERR_CONFIG, "0/1", "1/2");
    ck_assert_int_eq(check_file("complete"), 2);
}
END_TEST

START_TEST(resuming_with_another_build_lists_both)
{
    struct trace_meta meta = some_meta();
    struct record *r;
    struct trace t;
    write_file(1);
    meta.git_commit = "def5678";
    meta.started = "2027-01-01T00:00:00Z";
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(record_open(&r, path, &meta, RECORD_RESUME), 0);
        ck_assert_int_eq(record_close(r, "complete"), 0);
    }
    ck_assert_int_eq(trace_read(&t, path, 0), 0);
    ck_assert_str_eq(t.meta.git_commit, "abc1234; def5678");
    ck_assert_str_eq(t.meta.started, "2026-01-02T03:04:05Z");
    trace_deinit(&t);
}
END_TEST

START_TEST(resuming_a_missing_file_starts_one)
{
    struct record *r = open_record(RECORD_RESUME);
    ck_assert_int_eq(write_request(r, 0), 0);
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_int_eq(check_file("complete"), 1);
}
END_TEST

START_TEST(a_second_writer_is_told_the_pid_of_the_first)
{
    char pid[16];
    struct trace_meta meta = some_meta();
    struct record *r = open_record(RECORD_NEW), *second = NULL;
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    enum record_mode modes[] = {RECORD_NEW, RECORD_FORCE, RECORD_RESUME};
    for (int i = 0; i < 3; i++)
        ck_fails(record_open(&second, path, &meta, modes[i]), ERR_IO, path, pid);
    ck_assert_int_eq(write_request(r, 0), 0);
    ck_assert_int_eq(record_close(r, "complete"), 0);
    ck_assert_int_eq(check_file("complete"), 1);
}
END_TEST

START_TEST(a_missing_folder_is_an_error_that_names_it)
{
    struct trace_meta meta = some_meta();
    struct record *r = NULL;
    ck_fails(record_open(&r, "/tmp/specbed-no-such-folder/x.h5", &meta, RECORD_NEW), ERR_IO,
             "/tmp/specbed-no-such-folder/x.h5", "No such file");
}
END_TEST

#define NEED(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "line %d: %s; error: %s\n", __LINE__, #condition, err_text());                   \
            _exit(1);                                                                                        \
        }                                                                                                    \
    } while (0)

/* A child's part, without Check, which the limit would hit as well: write requests until one fails. */
static void write_until_full(int limit_file_size, volatile int *published)
{
    struct trace_meta meta = some_meta();
    struct rlimit limit = {400000, 400000};
    struct record *r = NULL;
    int i = 0, rc;
    signal(SIGXFSZ, SIG_IGN);
    NEED(record_open(&r, path, &meta, RECORD_NEW) == 0);
    NEED(!limit_file_size || setrlimit(RLIMIT_FSIZE, &limit) == 0);
    while ((rc = write_request(r, i)) == 0 && i < 100000)
        i++;
    *published = i;
    NEED(rc == ERR_IO && strstr(err_text(), path));
    NEED(strstr(err_text(), limit_file_size ? "File too large" : "No space left"));
    NEED(write_request(r, i) == ERR_IO);
    NEED(record_close(r, "interrupted") == 0);
    NEED(i > 10 && !exists(".next") && !exists(".lock"));
    _exit(0);
}

static void fill_up(int limit_file_size)
{
    int status;
    volatile int *published = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    if (pid == 0)
        write_until_full(limit_file_size, published);
    waitpid(pid, &status, 0);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child ended with %#x", status);
    ck_assert_int_eq(check_file("running"), *published);
}

START_TEST(a_file_size_limit_leaves_what_was_published)
{
    fill_up(1);
}
END_TEST

START_TEST(a_full_disk_leaves_what_was_published)
{
    if (mount("tmpfs", dir, "tmpfs", 0, "size=1m") != 0)
        return; /* not root: the test above covers the code */
    fill_up(0);
    unlink(path);
    ck_assert_int_eq(umount(dir), 0);
}
END_TEST

START_TEST(files_that_are_no_results_are_refused_in_words)
{
    struct trace t;
    ck_fails(trace_read(&t, path, 0), ERR_IO, path, "No such file");
    ck_fails(trace_read(&t, dir, 0), ERR_IO, dir, "directory");
    FILE *f = fopen(path, "w");
    fputs("not HDF5 at all", f);
    fclose(f);
    ck_fails(trace_read(&t, path, 0), ERR_FORMAT, path, "found something else");
    ck_assert_int_eq(truncate(path, 0), 0);
    ck_fails(trace_read(&t, path, 0), ERR_FORMAT, path, "found something else");
}
END_TEST

START_TEST(a_truncated_file_is_an_error_and_no_crash)
{
    size_t n;
    struct trace t;
    write_file(3);
    char *bytes = read_bytes(&n);
    for (size_t keep = 0; keep < n; keep += n / 97) {
        ck_assert_int_eq(truncate(path, (off_t)keep), 0);
        int rc = trace_read(&t, path, TRACE_READ_ALL);
        ck_assert_msg(rc == ERR_IO || rc == ERR_FORMAT, "%zu bytes gave %d", keep, rc);
        FILE *f = fopen(path, "w");
        ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
        fclose(f);
    }
    ck_assert_int_eq(trace_read(&t, path, TRACE_READ_ALL), 0);
    trace_deinit(&t);
    free(bytes);
}
END_TEST

/* A small valid result as rows, for planting one wrong number at a time. */
struct rows_of_a_file {
    struct trace_request request;
    struct trace_token token[2];
    struct trace_step step;
    struct trace_node node[2];
    struct trace_score score[2];
    int32_t step_expert[2], node_expert[6];
    int n_steps, n_scores; /* of these, how many are written */
    int32_t prompt[3];
    struct trace_meta meta;
};

static int read_with(const struct rows_of_a_file *x)
{
    struct record_file *f;
    struct trace_arm arm = {"", "", "", 0, ""};
    struct trace_prompt p = {"", "", "", 0, 0, ""};
    struct trace t;
    ck_assert_int_eq(record_file_create(&f, path, &x->meta, FILE_GROWING), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_ARMS, &arm, 1), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_PROMPTS, &p, 1), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_REQUESTS, &x->request, 1), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_PROMPT_TOKENS, x->prompt, 3), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_TOKENS, x->token, 2), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_STEPS, &x->step, x->n_steps), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_NODES, x->node, 2 * x->n_steps), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_SCORES, x->score, x->n_scores), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_STEP_EXPERTS, x->step_expert, 2 * x->n_steps), 0);
    ck_assert_int_eq(record_file_append(f, RECORD_NODE_EXPERTS, x->node_expert, 6 * x->n_steps), 0);
    ck_assert_int_eq(record_file_close(f), 0);
    int lean =
        trace_read(&t, path, TRACE_READ_TOKENS | TRACE_READ_SCORES | TRACE_READ_EXPERTS | TRACE_READ_JUDGED);
    if (!lean)
        trace_deinit(&t);
    int rc = trace_read(&t, path, TRACE_READ_ALL);
    if (!rc)
        trace_deinit(&t);
    ck_assert_int_eq(lean, rc);
    return rc;
}

static struct rows_of_a_file valid_rows(void)
{
    return (struct rows_of_a_file){
        .request = {.prompt_tokens = 3, .tokens = 2, .steps = 1, .concurrency = 1, .finish = FINISH_LENGTH},
        .token = {{5, 0, -1}, {6, 0, -2}},
        .step = {.proposed = 2,
                 .depth = 2,
                 .accepted = 1,
                 .emitted = 2,
                 .experts = 3,
                 .expert_layers = 2,
                 .top_k = 1,
                 .chosen = 6},
        .step_expert = {1, 2},
        .node_expert = {3, 4, 3, 5, 3, 4},
        .node = {{.parent = -1, .depth = 1, .rank = 1}, {.parent = 0, .depth = 2, .rank = 1}},
        .n_steps = 1,
        .meta = some_meta()};
}

static struct rows_of_a_file valid_scores(void)
{
    struct rows_of_a_file x = valid_rows();
    x.request.finish = TRACE_SCORED;
    x.request.steps = x.n_steps = 0;
    x.n_scores = 2;
    x.score[0] = (struct trace_score){.position = 3, .token = 5, .log_p = -1, .rank = 1};
    x.score[1] = (struct trace_score){.position = 4, .token = 6, .log_p = -2, .rank = 2};
    return x;
}

START_TEST(every_planted_wrong_number_is_found)
{
    struct rows_of_a_file x = valid_rows();
    ck_assert_msg(read_with(&x) == 0, "%s", err_text());
    x = valid_scores();
    ck_assert_msg(read_with(&x) == 0, "%s", err_text());
#define PLANT(change, ...) PLANT_IN(valid_rows(), change, __VA_ARGS__)
#define PLANT_IN(rows, change, ...)                                                                          \
    do {                                                                                                     \
        x = rows;                                                                                            \
        change;                                                                                              \
        ck_fails(read_with(&x), ERR_FORMAT, path, __VA_ARGS__);                                              \
    } while (0)
    PLANT(x.request.arm = 1, "/requests row 0", "arm");
    PLANT(x.request.arm = -1, "/requests row 0", "arm");
    PLANT(x.request.prompt = 1, "/requests row 0", "prompt");
    PLANT(x.request.prompt = -1, "/requests row 0", "prompt");
    PLANT(x.request.repeat = -1, "/requests row 0");
    PLANT(x.request.finish = 77, "/requests row 0");
    PLANT(x.request.ns_decode = -1, "/requests row 0", "time");
    PLANT(x.request.prompt_tokens = 4, "/requests row 0", "/prompt_tokens");
    PLANT(x.request.prompt_begin = INT64_MAX, "/requests row 0", "/prompt_tokens");
    PLANT(x.request.tokens = -1, "/requests row 0", "/tokens");
    PLANT(x.request.token_begin = 1, "/requests row 0", "/tokens");
    PLANT(x.request.tokens = 1, "/requests row 0", "emitted");
    PLANT(x.request.steps = 2, "/requests row 0", "/steps");
    PLANT(x.request.step_begin = -1, "/requests row 0", "/steps");
    PLANT(x.token[1].request = 1, "/tokens row 1");
    PLANT(x.token[1].id = -1, "/tokens row 1");
    PLANT(x.prompt[2] = -1, "/prompt_tokens row 2");
    PLANT(x.step.request = 1, "/steps row 0");
    PLANT(x.step.accepted = 3, "/steps row 0");
    PLANT(x.step.proposed = 1, "/steps row 0");
    PLANT(x.step.emitted = 3, "/steps row 0");
    PLANT(x.step.ns_host = -1, "/steps row 0", "time");
    PLANT(x.step.node_begin = 1, "/steps row 0", "/nodes");
    PLANT(x.step.node_begin = INT64_MIN, "/steps row 0", "/nodes");
    PLANT(x.step.chosen = 5, "/steps row 0", "choices");
    PLANT(x.step.chosen = -6, "/steps row 0", "choices");
    PLANT(x.step.top_k = 2, "/steps row 0", "choices");
    PLANT(x.step.top_k = 0, "/steps row 0", "choices");
    PLANT(x.step.top_k = INT32_MAX, "/steps row 0", "choices");
    PLANT(x.step.expert_layers = -1, "/steps row 0", "choices");
    PLANT((x.step.expert_layers = 3, x.step.chosen = 0), "/steps row 0", "/step_experts");
    PLANT(x.step.expert_begin = 1, "/steps row 0", "/step_experts");
    PLANT(x.step.chosen_begin = INT64_MAX, "/steps row 0", "/node_experts");
    PLANT(x.step_expert[1] = -1, "/step_experts row 1");
    PLANT(x.node_expert[5] = -1, "/node_experts row 5");
    PLANT(x.node[1].step = 1, "/nodes row 1");
    PLANT(x.node[1].parent = 1, "/nodes row 1");
    PLANT(x.node[0].parent = -2, "/nodes row 0");
    PLANT(x.node[0].depth = 0, "/nodes row 0");
    PLANT(x.meta.schema = TRACE_SCHEMA + 1, "newer");
    PLANT(x.meta.schema = 0, "schema");
    PLANT_IN(valid_scores(), x.request.score_begin = 1, "/requests row 0", "/scores");
    PLANT_IN(valid_scores(), x.request.score_begin = -1, "/requests row 0", "/scores");
    PLANT_IN(valid_scores(), x.n_scores = 1, "/requests row 0", "/scores");
    PLANT_IN(valid_scores(), (x.n_steps = 1, x.request.steps = 1), "/requests row 0", "one kind");
    PLANT_IN(valid_scores(), x.score[1].request = 1, "/scores row 1", "out of range");
    PLANT_IN(valid_scores(), x.score[1].token = 7, "/scores row 1", "expected token 1 of request 0");
    PLANT_IN(valid_scores(), x.score[1].token = -1, "/scores row 1", "out of range");
    PLANT_IN(valid_scores(), x.score[0].position = -1, "/scores row 0", "out of range");
    PLANT_IN(valid_scores(), x.score[0].rank = 0, "/scores row 0", "out of range");
}
END_TEST

START_TEST(rows_that_were_never_stored_are_not_believed)
{
    struct trace t;
    hsize_t rows = (hsize_t)1 << 40;
    write_file(1);
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), set = H5Dopen2(file, "/steps", H5P_DEFAULT);
    ck_assert_int_ge(H5Dset_extent(set, &rows), 0);
    H5Dclose(set);
    H5Fclose(file);
    ck_fails(trace_read(&t, path, 0), ERR_FORMAT, path, "/steps", "1099511627776 rows");
}
END_TEST

START_TEST(an_hdf5_file_of_someone_else_is_refused)
{
    struct trace t;
    H5Fclose(H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
    ck_fails(trace_read(&t, path, 0), ERR_FORMAT, path, "'schema'");
    write_file(1);
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    ck_assert_int_ge(H5Ldelete(file, "/nodes", H5P_DEFAULT), 0);
    H5Fclose(file);
    ck_fails(trace_read(&t, path, 0), ERR_FORMAT, path, "/nodes");
    write_file(1);
    file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    ck_assert_int_ge(H5Adelete(file, "device"), 0);
    H5Fclose(file);
    ck_fails(trace_read(&t, path, 0), ERR_FORMAT, path, "'device'");
}
END_TEST

START_TEST(the_hash_is_fnv_1a_of_little_endian_ids)
{
    /* FNV-1a 64 of no bytes is the offset basis; of the four bytes "foob" from the authors' test vectors */
    ck_assert_uint_eq(trace_hash_tokens(NULL, 0), 0xcbf29ce484222325u);
    ck_assert_uint_eq(trace_hash_tokens((int32_t[]){'f' | 'o' << 8 | 'o' << 16 | 'b' << 24}, 1),
                      0xdd120e790c2512afu);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("record");
    TCase *tc = tcase_create("record");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_add_test(tc, every_field_of_every_table_survives_the_round_trip);
    tcase_add_test(tc, scores_survive_the_round_trip);
    tcase_add_loop_test(tc, a_file_of_an_older_schema_is_read_and_resumed, 1, TRACE_SCHEMA);
    tcase_add_test(tc, a_file_has_what_its_schema_brought);
    tcase_add_test(tc, every_attribute_survives_the_round_trip);
    tcase_add_test(tc, parts_that_were_not_asked_for_are_not_read);
    tcase_add_test(tc, a_trace_of_steps_alone_has_no_nodes);
    tcase_add_test(tc, the_file_is_whole_after_every_request);
    tcase_add_test(tc, a_file_system_without_exchange_gets_copies);
    tcase_add_test(tc, a_reader_keeps_the_file_it_opened);
    tcase_add_test(tc, requests_that_grow_together_are_kept_apart);
    tcase_add_test(tc, readers_are_never_refused_while_a_writer_is_at_work);
    tcase_add_test(tc, a_reader_that_comes_during_an_exchange_gets_the_new_file);
    tcase_add_test(tc, a_file_that_stays_locked_is_an_error);
    tcase_add_test(tc, a_killed_writer_leaves_every_finished_request_and_nothing_else);
    tcase_add_test(tc, the_same_run_writes_the_same_bytes_even_when_resumed);
    tcase_add_test(tc, resuming_finds_requests_tokens_and_small_rows);
    tcase_add_test(tc, a_file_is_overwritten_only_by_force);
    tcase_add_test(tc, resuming_refuses_another_run_and_says_what_differs);
    tcase_add_test(tc, resuming_with_another_build_lists_both);
    tcase_add_test(tc, resuming_a_missing_file_starts_one);
    tcase_add_test(tc, a_second_writer_is_told_the_pid_of_the_first);
    tcase_add_test(tc, a_missing_folder_is_an_error_that_names_it);
    tcase_add_test(tc, a_file_size_limit_leaves_what_was_published);
    tcase_add_test(tc, a_full_disk_leaves_what_was_published);
    tcase_add_test(tc, files_that_are_no_results_are_refused_in_words);
    tcase_add_test(tc, a_truncated_file_is_an_error_and_no_crash);
    tcase_add_test(tc, every_planted_wrong_number_is_found);
    tcase_add_test(tc, rows_that_were_never_stored_are_not_believed);
    tcase_add_test(tc, an_hdf5_file_of_someone_else_is_refused);
    tcase_add_test(tc, the_hash_is_fnv_1a_of_little_endian_ids);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? 1 : 0;
}
