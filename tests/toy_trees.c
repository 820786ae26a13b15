/* toy_trees: the loop's records, taken apart. */
#include "tests/toy_trees.h"
#include "engine/err.h"
#include "tests/expect.h"
#include <math.h>
#include <string.h>

enum { NODES_MAX = sizeof((struct toy_trees *)0)->node / sizeof(struct toy_node) };

static void take(const struct step_record *r)
{
    struct toy_trees *t = r->user;
    EXPECT(t->n_steps < TOY_ANSWER && t->n + r->proposed <= NODES_MAX);
    t->steps[t->n_steps++] = r->proposed;
    t->accepted += r->accepted;
    for (int i = 0; i < r->proposed; i++)
        t->node[t->n++] = (struct toy_node){r->nodes[i].token, r->nodes[i].parent, r->nodes[i].log_q};
}

void toy_trees_run(struct model *m, const struct spec_opts *o, int n, const int *max_tokens,
                   struct toy_trees *out)
{
    static int prompt[TOY_REQUESTS][TOY_PROMPT];
    struct spec *s = NULL;
    EXPECT(n <= TOY_REQUESTS && o->trace != TRACE_STEPS);
    EXPECT_MSG(spec_open(&s, m, o) == 0, "%s", err_text());
    for (int next = 0; next < n || spec_active(s) > 0;) {
        struct spec_step step;
        for (; next < n && spec_free_slots(s) > 0; next++) {
            const struct spec_request r = {.prompt = prompt[next],
                                           .n_prompt = toy_prompt(next, prompt[next]),
                                           .max_tokens = max_tokens ? max_tokens[next] : TOY_ANSWER / 2,
                                           .request = (uint32_t)next,
                                           .user = &out[next]};
            memset(&out[next], 0, sizeof out[next]);
            EXPECT_MSG(spec_submit(s, &r) == 0, "%s", err_text());
        }
        EXPECT_MSG(spec_step(s, &step) == 0, "%s", err_text());
        for (int i = 0; i < step.n_records; i++)
            take(&step.records[i]);
    }
    spec_close(s);
}

static void assert_same_step(const struct toy_node *want, const struct toy_node *got, int n, int request,
                             int step, float tolerance, const char *what)
{
    for (int i = 0; i < n; i++)
        EXPECT_MSG(want[i].token == got[i].token && want[i].parent == got[i].parent &&
                       fabsf(want[i].log_q - got[i].log_q) <= tolerance,
                   "%s: request %d step %d: node %d of %d is %d below %d with log q %a, expected %d below %d "
                   "with %a",
                   what, request, step, i, n, got[i].token, got[i].parent, (double)got[i].log_q,
                   want[i].token, want[i].parent, (double)want[i].log_q);
}

int toy_trees_assert_same(const struct toy_trees *want, const struct toy_trees *got, int n, float tolerance,
                          const char *what)
{
    int nodes = 0;
    for (int r = 0; r < n; r++) {
        EXPECT_MSG(want[r].n_steps == got[r].n_steps, "%s: request %d took %d steps, expected %d", what, r,
                   got[r].n_steps, want[r].n_steps);
        for (int i = 0, at = 0; i < want[r].n_steps; at += want[r].steps[i++]) {
            EXPECT_MSG(want[r].steps[i] == got[r].steps[i],
                       "%s: request %d step %d has %d nodes, expected %d", what, r, i, got[r].steps[i],
                       want[r].steps[i]);
            assert_same_step(want[r].node + at, got[r].node + at, want[r].steps[i], r, i, tolerance, what);
        }
        nodes += want[r].n;
    }
    return nodes;
}
