/* conversation: turns to messages to ids. */
#include "experiments/conversation.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

static void forget_answers(struct conversation *c)
{
    for (int i = 0; i < WORKLOAD_MAX_TURNS; i++) {
        free(c->answer[i]);
        c->answer[i] = NULL;
    }
}

void conversation_begin(struct conversation *c, const struct prompt *p, const struct config *cfg)
{
    forget_answers(c);
    c->prompt = p;
    c->system = p->system ? p->system : cfg->workload.system;
}

void conversation_deinit(struct conversation *c)
{
    forget_answers(c);
    free(c->ids);
    *c = (struct conversation){0};
}

/* Ids that were given as such. */
static int copy_tokens(struct conversation *c)
{
    const struct prompt *p = c->prompt;
    if (p->n_tokens > c->cap_ids) {
        int *grown = realloc(c->ids, (size_t)p->n_tokens * sizeof *grown);
        if (!grown)
            FAIL(ERR_MEMORY, "prompt '%s': out of memory for %d token ids", p->id, p->n_tokens);
        c->ids = grown;
        c->cap_ids = p->n_tokens;
    }
    memcpy(c->ids, p->tokens, (size_t)p->n_tokens * sizeof *c->ids);
    c->n_ids = p->n_tokens;
    return 0;
}

int conversation_encode(struct conversation *c, const struct chat *chat, const struct tokenizer *t, int turn)
{
    struct chat_message m[2 * WORKLOAD_MAX_TURNS];
    int n = 0;
    if (c->prompt->tokens)
        return copy_tokens(c);
    if (!t)
        FAIL(ERR_CONFIG,
             "prompt '%s' of '%s': expected token ids ({\"tokens\": [1, 2, 3]}), found text: without a "
             "tokenizer "
             "the model reads nothing else; set model.path to a directory whose tokenizer's ids all exist in "
             "the model's vocabulary",
             c->prompt->id, c->prompt->dataset);
    if (*c->system)
        m[n++] = (struct chat_message){"system", c->system};
    for (int i = 0; i <= turn; i++) {
        m[n++] = (struct chat_message){"user", c->prompt->turns[i]};
        if (i < turn)
            m[n++] = (struct chat_message){"assistant", c->answer[i] ? c->answer[i] : ""};
    }
    c->n_ids = 0;
    TRY_CTX(chat_encode(chat, t, m, n, &c->ids, &c->n_ids, &c->cap_ids), "prompt '%s' of '%s', turn %d",
            c->prompt->id, c->prompt->dataset, turn);
    if (c->n_ids == 0)
        FAIL(ERR_CONFIG,
             "prompt '%s' of '%s', turn %d: expected at least 1 token, found none; remove the prompt",
             c->prompt->id, c->prompt->dataset, turn);
    return 0;
}

int conversation_answer(struct conversation *c, const struct tokenizer *t, int turn, const int *ids, int n)
{
    if (!t)
        return 0;
    char *text = tokenizer_decode(t, ids, n);
    if (!text)
        FAIL(ERR_MEMORY, "prompt '%s': out of memory for an answer of %d tokens", c->prompt->id, n);
    free(c->answer[turn]);
    c->answer[turn] = text;
    return 0;
}

/* An answer is decoded and encoded again for the next turn, which may take a few tokens more or fewer than
 * were generated. */
static int64_t likely_length(int n_ids, int turns, int max_tokens)
{
    int64_t earlier = (int64_t)(turns - 1) * max_tokens;
    return n_ids + earlier + earlier / 8 + max_tokens;
}

int conversation_cap(const struct workload *w, const struct config *cfg, const struct chat *chat,
                     const struct tokenizer *t, int context, int *cap)
{
    struct conversation c = {0};
    int64_t most = 2;
    int rc = 0;
    for (int i = 0; !rc && i < w->n; i++) {
        const struct prompt *p = &w->prompts[i];
        conversation_begin(&c, p, cfg);
        rc = conversation_encode(&c, chat, t, p->n_turns - 1);
        if (!rc && c.n_ids >= context)
            rc = ERR_SET(
                ERR_CONFIG,
                "prompt '%s' of '%s': %d tokens, and a context of %d tokens has no room for an answer; "
                "raise model.max_context if the model allows more, or remove the prompt",
                p->id, p->dataset, c.n_ids, context);
        int64_t n = likely_length(c.n_ids, p->n_turns, cfg->workload.max_tokens);
        most = n > most ? n : most;
    }
    conversation_deinit(&c);
    if (!rc)
        *cap = most < context ? (int)most : context;
    return rc;
}
