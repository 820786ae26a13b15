/* run_cell: as many conversations at the same time as workload.concurrency says. A lane holds one: when its
 * answer is there, its next turn, or the next conversation, takes the free slot before the next step.
 * Everything is recorded when an answer is finished, so a run may stop anywhere. */
#include "experiments/run_cell.h"
#include "drafts/drafts.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/config_whole.h"
#include "experiments/conversation.h"
#include "experiments/reference.h"
#include "experiments/run_score.h"
#include "spec/group.h"
#include <stdlib.h>
#include <string.h>

struct lane {
    struct conversation talk;
    int open, repeat, turn;
    int ready;                     /* 1: a prompt is encoded and waits for its place */
    struct record_request *record; /* of the answer being generated; NULL: none is, or it is a warm-up */
};

/* One cell of the sweep under way. */
struct cell {
    struct run *run; /* borrowed */
    struct config cfg;
    char *label; /* owned */
    struct workload work;
    struct reference *reference;
    struct spec_group *spec;
    struct lane *lanes;  /* owned [cfg.workload.concurrency] */
    int arm, cap;        /* row of /arms; most tokens of a text */
    int64_t next, talks; /* conversations that lanes took, and all: repeats x prompts */
};

static enum trace_level trace_level(const struct config *cfg)
{
    return !strcmp(cfg->trace.level, "steps")   ? TRACE_STEPS
           : !strcmp(cfg->trace.level, "nodes") ? TRACE_NODES
                                                : TRACE_FULL;
}

static int stopping(const struct cell *c)
{
    return *c->run->stop > 0;
}

static uint32_t lane_request(const struct lane *l)
{
    return workload_request_id(l->talk.prompt->index, l->turn, l->repeat);
}

/* An answer that an earlier run recorded becomes part of the conversation. */
static int recall_answer(struct cell *c, struct lane *l, int64_t row)
{
    int32_t *ids = NULL;
    int64_t n = 0;
    if (l->turn + 1 == l->talk.prompt->n_turns)
        return 0;
    TRY(record_tokens(c->run->record, row, &ids, &n));
    int rc = conversation_answer(&l->talk, c->run->with.tokenizer, l->turn, ids, (int)n);
    free(ids);
    return rc;
}

/* Move the lane to its next request that has no answer yet; *found 0: other lanes do the rest. */
static int lane_advance(struct cell *c, struct lane *l, int *found)
{
    const struct run_model *with = &c->run->with;
    for (;;) {
        if (!l->open || ++l->turn == l->talk.prompt->n_turns) {
            l->open = c->next < c->talks;
            *found = 0;
            if (!l->open)
                return 0;
            conversation_begin(&l->talk, &c->work.prompts[c->next % c->work.n], &c->cfg);
            l->repeat = (int)(c->next++ / c->work.n);
            l->turn = 0;
        }
        int64_t row = record_find(c->run->record, c->arm, lane_request(l));
        if (row < 0) {
            *found = 1;
            return conversation_encode(&l->talk, &with->chat, with->tokenizer, l->turn);
        }
        TRY(recall_answer(c, l, row));
    }
}

static int lane_record(struct cell *c, struct lane *l)
{
    const struct prompt *p = l->talk.prompt;
    struct trace_prompt row = {p->dataset, p->id, p->category, p->index, l->turn, p->turns[l->turn]};
    struct trace_request head = {.arm = c->arm,
                                 .repeat = l->repeat,
                                 .request = lane_request(l),
                                 .seed = c->cfg.sampling.seed,
                                 .concurrency = c->cfg.workload.concurrency,
                                 .started = clock_ns() - c->run->started};
    TRY(record_prompt(c->run->record, &row, &head.prompt));
    return record_begin(c->run->record, &head, l->talk.ids, l->talk.n_ids, &l->record);
}

static int lane_submit(struct cell *c, struct lane *l)
{
    int n = l->talk.n_ids, room = c->cap - n, wanted = c->cfg.workload.max_tokens;
    const char *id = l->talk.prompt->id;
    if (room < 1)
        FAIL(ERR_CONFIG,
             "prompt '%s' of '%s', turn %d: %d tokens with the answers before it, and a context of %d tokens "
             "has no room for another; lower workload.max_tokens, raise model.max_context if it is set, or "
             "remove the prompt",
             id, l->talk.prompt->dataset, l->turn, n, c->cap);
    struct spec_request r = {.prompt = l->talk.ids,
                             .n_prompt = n,
                             .max_tokens = wanted < room ? wanted : room,
                             .request = lane_request(l),
                             .user = l};
    TRY_CTX(spec_group_submit(c->spec, &r), "prompt '%s' of '%s', turn %d", id, l->talk.prompt->dataset,
            l->turn);
    return 0;
}

static int open_spec(struct cell *c);

/* A place for every lane that has something to ask. A prompt that is longer than expected waits until the
 * others are done, because the loop's memory is sized once: it is opened again, larger. */
static int refill(struct cell *c)
{
    int context = run_model_context(&c->run->with, &c->cfg);
    for (int i = 0; i < c->cfg.workload.concurrency; i++) {
        struct lane *l = &c->lanes[i];
        if (l->record)
            continue;
        if (!l->ready)
            TRY(lane_advance(c, l, &l->ready));
        if (!l->ready)
            continue;
        int64_t need = (int64_t)l->talk.n_ids + c->cfg.workload.max_tokens;
        if (c->cap < context && need > c->cap) {
            if (spec_active(spec_group_first(c->spec)) > 0)
                return 0;
            spec_group_close(c->spec);
            c->spec = NULL;
            need = need > 2 * (int64_t)c->cap ? need : 2 * (int64_t)c->cap;
            c->cap = need < context ? (int)need : context;
            TRY(open_spec(c));
        }
        TRY(lane_record(c, l));
        TRY(lane_submit(c, l));
        l->ready = 0;
    }
    return 0;
}

static int finish_request(struct cell *c, const struct spec_finished *finished)
{
    struct spec_finished f = *finished;
    struct lane *l = f.user;
    struct record_request *record = l->record;
    if (f.reason == FINISH_LENGTH && f.n < c->cfg.workload.max_tokens)
        f.reason = FINISH_CONTEXT; /* the budget was what the context left */
    l->record = NULL;
    progress_request(&c->run->progress);
    TRY(record_finish(c->run->record, record, &f));
    return conversation_answer(&l->talk, c->run->with.tokenizer, l->turn, f.tokens, f.n);
}

static int decode(struct cell *c)
{
    struct spec_step step;
    for (;;) {
        if (!stopping(c))
            TRY(refill(c));
        if (*c->run->stop > 1 || spec_active(spec_group_first(c->spec)) == 0)
            return 0;
        TRY(spec_group_step(c->spec, &step));
        for (int i = 0; i < step.n_records; i++) {
            struct lane *l = step.records[i].user;
            progress_step(&c->run->progress, &step.records[i]);
            TRY(record_step(l->record, &step.records[i]));
        }
        for (int i = 0; i < step.n_finished; i++)
            TRY(finish_request(c, &step.finished[i]));
        progress_show(&c->run->progress);
    }
}

/* First turns of the first prompts, as many at once as later, unrecorded. */
static int warm_up(struct cell *c)
{
    const struct run_model *with = &c->run->with;
    struct spec_step step;
    int64_t start = clock_ns();
    int wanted = c->cfg.workload.warmup;
    for (int next = 0; next < wanted && !stopping(c);) {
        for (int i = 0; i < c->cfg.workload.concurrency && next < wanted; i++) {
            struct lane *l = &c->lanes[i];
            conversation_begin(&l->talk, &c->work.prompts[next++ % c->work.n], &c->cfg);
            TRY(conversation_encode(&l->talk, &with->chat, with->tokenizer, 0));
            TRY(lane_submit(c, l));
        }
        while (spec_active(spec_group_first(c->spec)) > 0 && !stopping(c))
            TRY(spec_group_step(c->spec, &step));
    }
    spec_group_abort(c->spec);
    if (wanted > 0)
        log_info("run: %s: %d warm-up requests, %.2f s", c->label, wanted,
                 (double)(clock_ns() - start) * 1e-9);
    return 0;
}

static int open_spec(struct cell *c)
{
    const struct config *cfg = &c->cfg;
    struct run_model *with = &c->run->with;
    int strategy = 0, ignore = cfg->workload.ignore_eos;
    while (strcmp(drafts_all[strategy]->name, cfg->draft.strategy) != 0)
        strategy++;
    struct spec_opts o = {
        .draft = drafts_all[strategy],
        .draft_option = cfg->draft.option[strategy],
        .head = cfg->draft.head,
        .reference = c->reference ? reference_find : NULL,
        .reference_ctx = c->reference,
        .rule = accept_rule_find(cfg->sampling.rule),
        .sampling = {(float)cfg->sampling.temperature, cfg->sampling.top_k, (float)cfg->sampling.top_p,
                     (float)cfg->sampling.min_p, (uint64_t)cfg->sampling.seed, cfg->sampling.relaxed_top_k,
                     (float)cfg->sampling.relaxed_delta},
        .stop = {with->chat.stop, ignore ? 0 : with->chat.n_stop,
                 (const char *const *)cfg->workload.stop.items, cfg->workload.stop.n, with->tokenizer},
        .slots = cfg->workload.concurrency,
        .max_depth = cfg->draft.max_depth,
        .max_nodes = cfg->draft.max_nodes,
        .cap = c->cap,
        .trace = trace_level(cfg),
    };
    TRY(spec_group_open(&c->spec, with->ranks, &o));
    log_info("run: %s: %d sequences of up to %d tokens, %.1f MiB", c->label, o.slots, o.cap,
             (double)spec_bytes(spec_group_first(c->spec)) / (1 << 20));
    return 0;
}

static int register_arm(struct cell *c)
{
    char *config = config_dump(&c->cfg);
    if (!config)
        FAIL(ERR_MEMORY, "cell '%s': out of memory", c->label);
    struct trace_arm arm = {c->label, c->cfg.draft.strategy, c->cfg.sampling.rule,
                            !config_scores(&c->cfg) && accept_rule_find(c->cfg.sampling.rule)->lossy, config};
    int rc = record_arm(c->run->record, &arm, &c->arm);
    free(config);
    return rc;
}

int64_t run_count_requests(const struct workload *w, const struct config *cfg)
{
    int64_t turns = 0;
    for (int i = 0; i < w->n; i++)
        turns += w->prompts[i].n_turns;
    return turns * cfg->workload.repeats;
}

static int64_t count_recorded(const struct cell *c)
{
    int64_t n = 0;
    for (int64_t k = 0; k < c->talks; k++) {
        const struct prompt *p = &c->work.prompts[k % c->work.n];
        for (int turn = 0; turn < p->n_turns; turn++)
            n += record_find(c->run->record, c->arm,
                             workload_request_id(p->index, turn, (int)(k / c->work.n))) >= 0;
    }
    return n;
}

static int open_cell(struct cell *c)
{
    struct run_model *with = &c->run->with;
    const struct draft_ops *draft = drafts_find(c->cfg.draft.strategy);
    c->talks = (int64_t)c->work.n * c->cfg.workload.repeats;
    c->lanes = calloc((size_t)c->cfg.workload.concurrency, sizeof *c->lanes);
    if (!c->lanes)
        FAIL(ERR_MEMORY, "cell '%s': out of memory", c->label);
    TRY(conversation_cap(&c->work, &c->cfg, &with->chat, with->tokenizer, run_model_context(with, &c->cfg),
                         &c->cap));
    if (draft->needs & DRAFT_REFERENCE)
        TRY(reference_open(&c->reference, "draft.reference", c->cfg.draft.reference, c->cfg.sampling.rule,
                           with->model.fingerprint));
    return open_spec(c);
}

static void close_cell(struct cell *c)
{
    for (int i = 0; c->lanes && i < c->cfg.workload.concurrency; i++) {
        record_drop(c->run->record, c->lanes[i].record);
        conversation_deinit(&c->lanes[i].talk);
    }
    free(c->lanes);
    spec_group_close(c->spec);
    reference_close(c->reference);
    workload_deinit(&c->work);
    config_deinit(&c->cfg);
    free(c->label);
}

static int decode_cell(struct cell *c, int64_t done, int64_t total)
{
    int64_t start = clock_ns();
    TRY(open_cell(c));
    TRY(warm_up(c));
    struct progress *p = &c->run->progress;
    progress_begin(p, c->label, done, total);
    int rc = decode(c);
    progress_end(p);
    if (!rc)
        log_info("run: %s: %lld requests, %lld tokens, %.2f s with warm-up", c->label,
                 (long long)(p->done - done), (long long)p->tokens, (double)(clock_ns() - start) * 1e-9);
    return rc;
}

static int score_cell(struct cell *c, int64_t done, int64_t total)
{
    const struct score_cell cell = {c->run, &c->cfg, &c->work, c->label, c->arm, done, total};
    return run_score(&cell);
}

int run_cell(struct run *r, int i)
{
    struct cell c = {.run = r};
    int rc = config_cell(&r->cfg, i, &c.cfg, &c.label);
    if (!rc)
        rc = workload_load(&c.work, &c.cfg, r->opts->slice, r->opts->of);
    if (!rc)
        rc = run_model_open(&r->with, &c.cfg);
    if (!rc)
        rc = register_arm(&c);
    if (!rc) {
        c.talks = (int64_t)c.work.n * c.cfg.workload.repeats;
        int64_t total = run_count_requests(&c.work, &c.cfg), done = count_recorded(&c);
        if (done == total)
            log_info("run: %s: all %lld requests are in the file", c.label, (long long)total);
        else
            rc = config_scores(&c.cfg) ? score_cell(&c, done, total) : decode_cell(&c, done, total);
    }
    if (rc)
        err_context("cell '%s'", c.label ? c.label : "?");
    close_cell(&c);
    return rc;
}
