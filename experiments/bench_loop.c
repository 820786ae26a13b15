/* bench_loop: a step of the decode loop, for what it has around its pass. The prompt repeats itself, so that
 * the n-gram draft finds a tree as large as it may be; the temperature is so high that next to nothing of it
 * is accepted, so that the text lasts for many commits. */
#include "drafts/drafts.h"
#include "engine/err.h"
#include "experiments/bench.h"
#include "spec/loop.h"
#include <stdlib.h>

enum { PERIOD = 16, OPTIONS_MAX = 16, MARGIN = 8 };

static int submit(struct bench *b, struct spec *s, int context, int answer)
{
    struct spec_step step;
    int *prompt = malloc(((size_t)context + 1) * sizeof *prompt);
    if (!prompt)
        FAIL(ERR_MEMORY, "bench: out of memory for a prompt of %d tokens", context + 1);
    for (int i = 0; i <= context; i++)
        prompt[i] = b->tokens[i % PERIOD];
    const struct spec_request request = {.prompt = prompt, .n_prompt = context + 1, .max_tokens = answer};
    int rc = spec_submit(s, &request);
    tap_follow(&b->tap);
    if (rc == 0)
        rc = spec_step(s, &step);
    tap_close(&b->tap);
    free(prompt);
    return rc;
}

int bench_loop_open(struct bench *b, int rows, int context, int commits, struct spec **out)
{
    const int room = b->m.cfg.max_positions - context - 1, wanted = commits + 2 * rows + MARGIN;
    const int answer = wanted < room ? wanted : room;
    double option[OPTIONS_MAX] = {0};
    struct spec_opts opts = {.draft = rows > 1 ? &draft_ngram : &draft_none,
                             .draft_option = option,
                             .rule = accept_rule_find("coupled"),
                             .sampling = {.temperature = 1000, .top_p = 1, .seed = 1},
                             .slots = 1,
                             .max_depth = rows - 1,
                             .max_nodes = rows - 1,
                             .cap = context + 1 + answer,
                             .trace = TRACE_NODES};
    for (int i = 0; opts.draft->options[i].name && i < OPTIONS_MAX; i++)
        option[i] = opts.draft->options[i].def;
    struct spec *s = NULL;
    TRY(spec_open(&s, &b->m, &opts));
    const int rc = submit(b, s, context, answer);
    if (rc)
        spec_close(s);
    else
        *out = s;
    return rc;
}

void bench_loop_close(struct bench *b, struct spec *s)
{
    tap_close(&b->tap);
    spec_close(s);
}
