/* loop: requests come, steps go, answers leave. spec_step keeps the device busy: it enqueues further steps as
 * long as some text is not certain to end in those under way, then takes the oldest record. A host strategy
 * is the case of none ahead. A request joins in the order of operations, between two steps, and is waited for
 * by nobody. Nothing is allocated. */
#include "spec/loop.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "spec/loop_state.h"
#include <string.h>

int spec_active(const struct spec *s)
{
    int n = 0;
    for (int i = 0; i < s->opts.slots; i++)
        n += s->seq[i].active;
    return n;
}

int spec_free_slots(const struct spec *s)
{
    return s->opts.slots - spec_active(s);
}

static int check_request(const struct spec *s, const struct spec_request *r)
{
    int cap = s->opts.cap, context = s->model->cfg.max_positions, vocab = s->model->cfg.vocab;
    if (spec_free_slots(s) == 0)
        FAIL(ERR_LIMIT, "request %u: expected a free slot, all %d are taken", r->request, s->opts.slots);
    if (r->n_prompt < 1 || r->max_tokens < 1)
        FAIL(ERR_CONFIG, "request %u: expected a prompt and an answer of at least 1 token, found %d and %d",
             r->request, r->n_prompt, r->max_tokens);
    if (r->n_prompt > cap || r->max_tokens > cap - r->n_prompt)
        FAIL(ERR_LIMIT, "request %u: expected at most %d tokens of prompt and answer, found %d + %d",
             r->request, cap, r->n_prompt, r->max_tokens);
    if (r->n_prompt >= context)
        FAIL(ERR_LIMIT,
             "request %u: expected a prompt of at most %d tokens (the model's context less 1), found %d",
             r->request, context - 1, r->n_prompt);
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= vocab)
            FAIL(ERR_CONFIG, "request %u: prompt token %d: expected an id from 0 to %d, found %d", r->request,
                 i, vocab - 1, r->prompt[i]);
    return 0;
}

static struct seq_state state_of(const struct spec *s, const struct seq *q)
{
    return (struct seq_state){.live = 1,
                              .n = q->n,
                              .n_prompt = q->n_prompt,
                              .end = q->end,
                              .context_end = s->limit,
                              .request = q->request,
                              .serial = q->serial};
}

/* All but the last token, which is the first root, in blocks that end at fixed positions. */
static int prefill(struct spec *s, int slot, const int *tokens, int n)
{
    struct backend *be = loop_backend(s);
    int64_t *clock = s->prefill_clock + 2 * (size_t)slot;
    kv_reset(&s->kv, slot);
    TRY(be->ops->stamp(be, &clock[0]));
    s->fwd.tap = s->tap_prefill;
    for (int at = 0, len; at < n; at += len) {
        len = loop_min(s->prefill_block - at % s->prefill_block, n - at);
        TRY(forward_prefill(&s->fwd, slot, tokens + at, len));
        if (s->opts.draft->needs & DRAFT_HIDDEN)
            TRY(s->opts.draft->prefilled(s->draft, slot, tokens + at, at, len));
    }
    s->fwd.tap = s->tap_step;
    return be->ops->stamp(be, &clock[1]);
}

/* Prompt, then state: with it the slot takes part in every step enqueued from now on. */
static int join(struct spec *s, int slot)
{
    struct backend *be = loop_backend(s);
    const struct seq *q = &s->seq[slot];
    const struct seq_state state = state_of(s, q);
    TRY_CTX(prefill(s, slot, q->text, q->n_prompt - 1), "prefilling request %u", q->request);
    TRY(be->ops->upload(be, s->step.text + (size_t)slot * (size_t)s->step.cap, q->text,
                        (size_t)q->n * sizeof *q->text));
    return be->ops->upload(be, &s->step.seq[slot], &state, sizeof state);
}

static int begin_draft(struct spec *s, int slot)
{
    const struct seq *q = &s->seq[slot];
    const struct draft_text text = {slot, q->request, q->text, q->n, q->n_prompt};
    if (!(s->opts.draft->needs & DRAFT_HOST))
        return 0;
    TRY_CTX(s->opts.draft->begin(s->draft, &text), "draft '%s', request %u", s->opts.draft->name, q->request);
    return 0;
}

/* Serial 0 is nobody's. */
static uint32_t next_serial(struct spec *s)
{
    s->serials += s->serials == UINT32_MAX ? 2 : 1;
    return s->serials;
}

int spec_submit(struct spec *s, const struct spec_request *r)
{
    int64_t start = clock_ns();
    TRY(check_request(s, r));
    int slot = 0;
    while (s->seq[slot].active)
        slot++;
    struct seq *q = &s->seq[slot];
    memcpy(q->text, r->prompt, (size_t)r->n_prompt * sizeof *q->text);
    q->n = q->n_prompt = r->n_prompt;
    q->end = r->n_prompt + r->max_tokens;
    q->steps = 0;
    q->request = r->request;
    q->serial = next_serial(s);
    q->user = r->user;
    q->finish = FINISH_NONE;
    q->since = s->n_enqueued;
    q->submitted = start;
    stop_begin(&q->stop);
    TRY(join(s, slot));
    TRY(begin_draft(s, slot));
    q->active = 1;
    return 0;
}

static int any_goes_on(const struct spec *s)
{
    for (int slot = 0; slot < s->opts.slots; slot++)
        if (loop_goes_on(s, &s->seq[slot]))
            return 1;
    return 0;
}

/* The step to wait for and, for device strategies, those behind it. */
static int enqueue(struct spec *s)
{
    const int is_host = (s->opts.draft->needs & DRAFT_HOST) != 0;
    const uint64_t most = is_host ? 1 : 1 + (uint64_t)loop_min(loop_backend(s)->ahead, LOOP_RING - 2);
    while (s->n_enqueued - s->n_drained < most && any_goes_on(s))
        TRY(is_host ? loop_host_step(s) : loop_enqueue(s, 0, clock_ns()));
    return 0;
}

/* What observing took belongs to the draft. */
static int observe(struct spec *s, const struct spec_step *step, const struct step_entry *e)
{
    int64_t ns = 0;
    if (!(s->opts.draft->needs & DRAFT_HOST))
        return 0;
    TRY(loop_host_observe(s, step, e, &ns));
    for (int i = 0; i < step->n_records; i++) {
        s->records[i].ns_draft += ns;
        s->records[i].ns_total += ns;
    }
    return 0;
}

/* Steps in which no sequence of now took part leave nothing to tell. */
static int next_step(struct spec *s, struct spec_step *out)
{
    struct step_entry e;
    struct spec_step step = {s->records, 0, s->finished, 0};
    while (step.n_records == 0 && spec_active(s) > 0) {
        TRY(enqueue(s));
        TRY(loop_wait(s, &e));
        TRY(loop_drain(s, &e, &step));
        s->n_drained++;
        TRY(observe(s, &step, &e));
    }
    *out = step;
    return 0;
}

int spec_step(struct spec *s, struct spec_step *out)
{
    int rc = next_step(s, out);
    s->failed |= rc != 0;
    return rc;
}

void spec_abort(struct spec *s)
{
    struct backend *be = loop_backend(s);
    struct step_entry e;
    for (; s->n_drained < s->n_enqueued && !s->failed; s->n_drained++)
        s->failed = loop_wait(s, &e) != 0;
    s->n_drained = s->n_enqueued;
    for (int i = 0; i < s->opts.slots; i++) {
        static const int not_live = 0;
        if (s->seq[i].active && !s->failed)
            s->failed = be->ops->upload(be, &s->step.seq[i].live, &not_live, sizeof not_live) != 0;
        s->seq[i].active = 0;
        kv_reset(&s->kv, i);
    }
}
