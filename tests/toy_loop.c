/* toy_loop: every record is checked against the answer it is part of, so that each test of the loop tests the
 * records too. */
#include "tests/toy_loop.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include "tests/expect.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS_MAX = 8 };

struct toy_draft toy_draft(const char *strategy, ...)
{
    struct toy_draft d = {.ops = drafts_find(strategy)};
    va_list ap;
    EXPECT(d.ops);
    for (int i = 0; d.ops->options[i].name; i++)
        d.option[i] = d.ops->options[i].def;
    va_start(ap, strategy);
    for (const char *word = va_arg(ap, const char *); word; word = va_arg(ap, const char *)) {
        size_t n = strcspn(word, "=");
        int i = 0;
        while (d.ops->options[i].name && strncmp(d.ops->options[i].name, word, n) != 0)
            i++;
        EXPECT(d.ops->options[i].name);
        d.option[i] = strtod(word + n + 1, NULL);
    }
    va_end(ap);
    return d;
}

struct spec_opts toy_spec_opts(const struct toy_draft *draft)
{
    return (struct spec_opts){.draft = draft->ops,
                              .draft_option = draft->option,
                              .head = "synthetic",
                              .rule = accept_rule_find("greedy"),
                              .sampling = {.top_p = 1, .seed = 9, .relaxed_top_k = 1},
                              .slots = 1,
                              .max_depth = 5,
                              .max_nodes = 5,
                              .cap = TOY_PROMPT + TOY_ANSWER,
                              .trace = TRACE_FULL,
                              .prefill_block = 16};
}

int toy_prompt(int i, int tokens[TOY_PROMPT])
{
    int n = i == 0 ? 1 : 1 + (int)(philox(1, (uint32_t)i, 0, 90, 0).v[0] % TOY_PROMPT),
        period = i % 2 ? 3 + i % 4 : n;
    for (int k = 0; k < n; k++)
        tokens[k] = (int)(philox(1, (uint32_t)i, (uint32_t)(k % period), 91, 0).v[0] % TOY_VOCAB);
    return n;
}

static void check_nodes(const struct step_record *r)
{
    int deepest = 0, n_accepted = 0;
    for (int i = 0; i < r->proposed; i++) {
        const struct node_record *n = &r->nodes[i];
        EXPECT(n->parent >= TREE_ROOT && n->parent < i);
        EXPECT(n->depth == 1 + (n->parent < 0 ? 0 : r->nodes[n->parent].depth));
        EXPECT(n->rank >= 1 && n->rank <= TOY_VOCAB && n->log_p < 0);
        EXPECT(!n->accepted || n->parent < 0 || r->nodes[n->parent].accepted);
        for (int k = 0; k < i; k++)
            EXPECT(r->nodes[k].parent != n->parent || r->nodes[k].token != n->token);
        if (n->accepted && n_accepted < r->emitted) {
            EXPECT(r->tokens[n_accepted] == n->token);
            EXPECT(r->log_p[n_accepted] == n->log_p);
        }
        n_accepted += n->accepted;
        deepest = n->depth > deepest ? n->depth : deepest;
    }
    EXPECT(deepest == r->depth);
    EXPECT(n_accepted == r->accepted);
}

static void check_record(const struct spec_opts *o, const struct step_record *r, int steps)
{
    EXPECT(r->slot >= 0 && r->slot < o->slots);
    EXPECT(r->proposed <= o->max_nodes && r->depth <= o->max_depth && r->accepted <= r->depth);
    EXPECT(r->emitted >= 1 && r->emitted <= r->accepted + 1);
    EXPECT(r->emitted == r->accepted + 1 || r->flags & (STEP_STOP | STEP_BUDGET));
    EXPECT(!!(r->flags & STEP_FIRST) == (steps == 0));
    EXPECT(!!(r->flags & STEP_NO_DRAFT) == (r->proposed == 0));
    EXPECT(r->ns_draft >= 0 && r->ns_verify > 0 && r->ns_accept >= 0 && r->ns_host >= 0);
    EXPECT(r->ns_total == r->ns_draft + r->ns_verify + r->ns_accept + r->ns_host);
    EXPECT((o->trace == TRACE_STEPS) == (r->nodes == NULL));
    if (r->nodes)
        check_nodes(r);
}

/* What a slot's current request has emitted so far; its first position gives the prompt's length. */
struct progress {
    struct toy_answer a;
    int first;
};

static void collect(const struct spec_opts *o, const struct spec_step *step, struct progress *progress,
                    int ahead)
{
    int rows = 0;
    for (int i = 0; i < step->n_records; i++) {
        const struct step_record *r = &step->records[i];
        struct progress *p = &progress[r->slot];
        check_record(o, r, p->a.steps);
        if (p->a.steps++ == 0)
            p->first = r->position;
        EXPECT(r->position == p->first + p->a.n);
        EXPECT(p->a.n + r->emitted <= TOY_ANSWER);
        memcpy(p->a.tokens + p->a.n, r->tokens, (size_t)r->emitted * sizeof *r->tokens);
        memcpy(p->a.log_p + p->a.n, r->log_p, (size_t)r->emitted * sizeof *r->log_p);
        p->a.n += r->emitted;
        p->a.proposed += r->proposed;
        p->a.accepted += r->accepted;
        rows += 1 + r->proposed;
    }
    for (int i = 0; i < step->n_records;
         i++) { /* a pass under way may hold rows of an answer cut by a stop string */
        const int more = step->records[i].pass_seqs - step->n_records;
        EXPECT(more == 0 || (more > 0 && ahead && o->stop.n_strings > 0));
        EXPECT(step->records[i].pass_rows - rows >= more && (more || step->records[i].pass_rows == rows));
    }
}

static void take_finished(const struct spec_step *step, struct progress *progress)
{
    for (int i = 0; i < step->n_finished; i++) {
        const struct spec_finished *f = &step->finished[i];
        struct progress *p = &progress[f->slot];
        struct toy_answer *out = f->user;
        EXPECT(f->n == p->a.n);
        EXPECT(f->steps == p->a.steps);
        EXPECT(memcmp(f->tokens, p->a.tokens, (size_t)f->n * sizeof *f->tokens) == 0);
        EXPECT(f->ns_prefill >= 0 && f->ns_first > 0 && f->ns_decode >= 0);
        p->a.reason = f->reason;
        *out = p->a;
        *p = (struct progress){.first = 0};
    }
}

void toy_open_plain(struct toy *t, int n, struct toy_answer *plain)
{
    EXPECT_MSG(toy_open(t, 1) == 0, "%s", err_text());
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    toy_run(&t->model, &o, n, NULL, plain);
}

void toy_run(struct model *m, const struct spec_opts *o, int n, const int *max_tokens, struct toy_answer *out)
{
    static int prompt[TOY_REQUESTS][TOY_PROMPT];
    struct progress *progress = calloc(SLOTS_MAX, sizeof *progress);
    struct spec *s = NULL;
    EXPECT(progress && n <= TOY_REQUESTS && o->slots <= SLOTS_MAX);
    EXPECT_MSG(spec_open(&s, m, o) == 0, "%s", err_text());
    for (int next = 0, done = 0; done < n;) {
        for (; next < n && spec_free_slots(s) > 0; next++) {
            struct spec_request r = {.prompt = prompt[next],
                                     .n_prompt = toy_prompt(next, prompt[next]),
                                     .max_tokens = max_tokens ? max_tokens[next] : TOY_ANSWER / 2,
                                     .request = (uint32_t)next,
                                     .user = &out[next]};
            EXPECT_MSG(spec_submit(s, &r) == 0, "%s", err_text());
        }
        struct spec_step step;
        EXPECT_MSG(spec_step(s, &step) == 0, "%s", err_text());
        collect(o, &step, progress, m->be->ahead);
        take_finished(&step, progress);
        done += step.n_finished;
    }
    EXPECT(spec_active(s) == 0);
    spec_close(s);
    free(progress);
}

void toy_assert_same(const struct toy_answer *a, const struct toy_answer *b, const char *what)
{
    EXPECT_MSG(a->n == b->n && a->reason == b->reason, "%s: %d tokens, then %s; expected %d, then %s", what,
               b->n, finish_name(b->reason), a->n, finish_name(a->reason));
    for (int i = 0; i < a->n; i++)
        EXPECT_MSG(a->tokens[i] == b->tokens[i] && memcmp(&a->log_p[i], &b->log_p[i], sizeof(float)) == 0,
                   "%s: token %d is %d with log p %.9g, expected %d with %.9g", what, i, b->tokens[i],
                   (double)b->log_p[i], a->tokens[i], (double)a->log_p[i]);
}

int toy_reference(void *ctx, uint32_t request, const int **tokens)
{
    const struct toy_answer *a = ctx;
    if (request >= TOY_REQUESTS)
        return 0;
    *tokens = a[request].tokens;
    return a[request].n;
}

struct tokenizer *toy_letters(void)
{
    char json[4096];
    int n = snprintf(json, sizeof json,
                     "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
                     "\"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"merges\": [], "
                     "\"vocab\": {");
    for (int i = 0; i < TOY_VOCAB; i++)
        n += snprintf(json + n, sizeof json - (size_t)n, "%s\"\\u%04x\": %d", i ? ", " : "",
                      i < 94 ? '!' + i : 0xC0 + i - 94, i);
    n += snprintf(json + n, sizeof json - (size_t)n, "}}}");
    struct tokenizer *t = NULL;
    EXPECT_MSG(tokenizer_parse(&t, json, (size_t)n, "toy tokenizer") == 0, "%s", err_text());
    return t;
}

int toy_spell(const struct toy_answer *a, int from, int length, char *out)
{
    for (int i = 0; i < length; i++) {
        if (a->tokens[from + i] >= 94)
            return 0;
        out[i] = (char)('!' + a->tokens[from + i]);
    }
    out[length] = 0;
    return 1;
}
