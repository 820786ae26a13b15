/* toy_experts: a row's bits depend on the row and its ancestors alone, so one pass over a finished text says
 * what every step must have seen of its tokens. */
#include "tests/toy_experts.h"
#include "engine/err.h"
#include "tests/expect.h"
#include <string.h>

enum { EXPERTS_MAX = 256, CELLS = 128 };

static void ok(int rc)
{
    EXPECT_MSG(rc == 0, "%s", err_text());
}

static void submit(struct spec *s, int vocab, struct toy_experts *out)
{
    int prompt[TOY_PROMPT];
    for (int slot = 0; slot < TOY_EXPERTS_SLOTS; slot++) {
        struct toy_experts_text *t = &out->text[slot];
        t->n = toy_prompt(3 + 2 * slot, prompt);
        for (int i = 0; i < t->n; i++)
            t->tokens[i] = prompt[i] % vocab;
        t->first = t->n - 1;
        const struct spec_request r = {t->tokens, t->n, TOY_EXPERTS_TEXT - t->n, (uint32_t)slot, NULL};
        ok(spec_submit(s, &r));
    }
}

/* Every row of the pass, by its records. */
static void check_distinct(const struct spec_step *step, int layer)
{
    int seen[EXPERTS_MAX] = {0}, distinct = 0;
    for (int i = 0; i < step->n_records; i++) {
        const struct step_record *r = &step->records[i];
        for (int row = 0; row <= r->proposed; row++)
            for (int k = 0; k < r->top_k; k++) {
                const int e = r->chosen[(row * r->expert_layers + layer) * r->top_k + k];
                EXPECT_MSG(e >= 0 && e < EXPERTS_MAX, "row %d, layer %d: expert %d", row, layer, e);
                distinct += !seen[e]++;
            }
    }
    EXPECT_MSG(step->records[0].distinct[layer] == distinct,
               "layer %d: %d distinct experts, its rows chose %d", layer, step->records[0].distinct[layer],
               distinct);
}

/* What the root and the accepted nodes chose goes to their places in the text. */
static void take_chosen(const struct step_record *r, struct toy_experts_text *t)
{
    for (int row = 0; row <= r->proposed; row++) {
        const int at = r->position - 1 + (row ? r->nodes[row - 1].depth : 0);
        if ((row && !r->nodes[row - 1].accepted) || at >= TOY_EXPERTS_TEXT)
            continue;
        for (int l = 0; l < r->expert_layers; l++)
            memcpy(t->chosen[at][l], r->chosen + (row * r->expert_layers + l) * r->top_k,
                   (size_t)r->top_k * sizeof(int));
    }
}

static void take_step(const struct spec_step *step, enum trace_level trace, struct toy_experts *out)
{
    const struct step_record *first = &step->records[0];
    const int at = out->steps++;
    EXPECT(at < TOY_EXPERTS_TEXT && first->pass_seqs == step->n_records);
    out->layers = first->expert_layers;
    out->top_k = first->top_k;
    out->rows[at] = first->pass_rows;
    EXPECT(out->layers > 0 && out->layers <= TOY_EXPERTS_LAYERS && out->top_k <= TOY_EXPERTS_TOP_K);
    memcpy(out->distinct[at], first->distinct, (size_t)out->layers * sizeof(int));
    for (int slot = 0; slot < TOY_EXPERTS_SLOTS; slot++)
        out->before[at][slot] = out->text[slot].n;
    for (int i = 0; i < step->n_records; i++) {
        const struct step_record *r = &step->records[i];
        struct toy_experts_text *t = &out->text[r->slot];
        EXPECT(memcmp(r->distinct, first->distinct, (size_t)out->layers * sizeof(int)) == 0);
        EXPECT((r->chosen != NULL) == (trace == TRACE_FULL));
        memcpy(t->tokens + t->n, r->tokens, (size_t)r->emitted * sizeof(int));
        t->n += r->emitted;
        if (r->chosen)
            take_chosen(r, t);
    }
    for (int l = 0; trace == TRACE_FULL && l < out->layers; l++)
        check_distinct(step, l);
}

/* The whole text as one pass. */
static void check_text(struct model *m, const struct toy_experts *o, const struct toy_experts_text *t)
{
    struct kv kv;
    struct forward f;
    struct forward_row rows[TOY_EXPERTS_TEXT];
    ok(kv_init(&kv, m->be, m, 1, CELLS));
    ok(forward_init(&f, m, &kv, TOY_EXPERTS_TEXT, TOY_EXPERTS_TEXT));
    for (int i = 0; i < t->n; i++)
        rows[i] = (struct forward_row){t->tokens[i], 0, i - 1};
    ok(forward_run(&f, rows, t->n, FORWARD_LOGITS));
    EXPECT(f.moe_layers == o->layers);
    for (int at = t->first; at < t->n - 1; at++)
        for (int l = 0; l < o->layers; l++)
            for (int k = 0; k < o->top_k; k++) {
                const int want = f.host_experts[(l * t->n + at) * o->top_k + k];
                EXPECT_MSG(t->chosen[at][l][k] == want,
                           "token %d of %d, layer %d, choice %d: the step's record says expert %d, a pass %d",
                           at, t->n, l, k, t->chosen[at][l][k], want);
            }
    forward_deinit(&f);
    kv_deinit(&kv);
}

void toy_experts_run(struct model *m, enum trace_level trace, struct toy_experts *out)
{
    const struct toy_draft draft = toy_draft("ngram", "min=1", NULL);
    struct spec_opts o = toy_spec_opts(&draft);
    struct spec *s = NULL;
    struct spec_step step;
    o.slots = TOY_EXPERTS_SLOTS;
    o.cap = TOY_EXPERTS_TEXT;
    o.trace = trace;
    *out = (struct toy_experts){.steps = 0};
    ok(spec_open(&s, m, &o));
    submit(s, m->cfg.vocab, out);
    while (spec_active(s) > 0) {
        ok(spec_step(s, &step));
        if (step.n_records > 0)
            take_step(&step, trace, out);
    }
    spec_close(s);
    for (int slot = 0; trace == TRACE_FULL && slot < TOY_EXPERTS_SLOTS; slot++)
        check_text(m, out, &out->text[slot]);
}
