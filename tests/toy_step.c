/* toy_step: both blocks are shared out by the same function, so that one copy moves all of it. */
#include "tests/toy_step.h"
#include "engine/err.h"
#include "tests/expect.h"
#include <stdlib.h>
#include <string.h>

static void *next(char **at, size_t n, size_t size)
{
    void *p = *at;
    *at += (n * size + 63) / 64 * 64;
    return p;
}

static size_t share_out(struct step *s, const struct trees *sizes, int cap, char *base, uint64_t **counter,
                        int **stop)
{
    const size_t slots = (size_t)sizes->slots, deep = (size_t)sizes->max_depth,
                 all = slots * (size_t)sizes->max_nodes, rows = slots + all;
    char *at = base;
    *s = (struct step){.cap = cap, .max_rows = (int)rows, .trees = *sizes};
    s->seq = next(&at, slots, sizeof *s->seq);
    s->clock = next(&at, STEP_CLOCKS, sizeof *s->clock);
    *counter = next(&at, 1, sizeof **counter);
    int **of_rows[] = {&s->token, &s->slot, &s->pos, &s->cell, &s->base, &s->path_off};
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        *of_rows[i] = next(&at, rows, sizeof(int));
    int **of_nodes[] = {&s->trees.token, &s->trees.parent, &s->trees.depth, &s->trees.q_row, &s->rank};
    for (size_t i = 0; i < sizeof of_nodes / sizeof *of_nodes; i++)
        *of_nodes[i] = next(&at, all, sizeof(int));
    float **floats[] = {&s->trees.log_q, &s->log_p, &s->entropy, &s->gap};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        *floats[i] = next(&at, all, sizeof(float));
    int **of_slots[] = {&s->first_row, &s->accepted, &s->bonus, &s->trees.n};
    for (size_t i = 0; i < sizeof of_slots / sizeof *of_slots; i++)
        *of_slots[i] = next(&at, slots, sizeof(int));
    s->accepted_path = next(&at, slots * deep, sizeof(int));
    s->emitted_log_p = next(&at, slots * (1 + deep), sizeof(float));
    s->path = next(&at, rows * (1 + deep), sizeof(int));
    s->text = next(&at, slots * (size_t)cap, sizeof(int));
    s->count = next(&at, 2, sizeof(int));
    *stop = next(&at, TOY_STOPS, sizeof(int));
    return (size_t)(at - base);
}

void toy_step_open(struct toy_step *t, struct backend *be, const struct trees *sizes, int cap)
{
    static char nowhere[1];
    *t = (struct toy_step){.be = be};
    t->bytes = share_out(&t->host, sizes, cap, nowhere, &t->host_counter, &t->host_stop);
    t->copy = aligned_alloc(64, t->bytes);
    EXPECT(t->copy);
    memset(t->copy, 0, t->bytes);
    EXPECT_MSG(be->ops->alloc(be, t->bytes, &t->block) == 0, "%s", err_text());
    EXPECT_MSG(be->ops->alloc_host(be, TOY_RING * step_entry_bytes(sizes), &t->ring) == 0, "%s", err_text());
    share_out(&t->host, sizes, cap, t->copy, &t->host_counter, &t->host_stop);
    share_out(&t->on, sizes, cap, t->block, &t->counter, &t->stop);
}

void toy_step_close(struct toy_step *t)
{
    t->be->ops->release(t->be, t->block);
    t->be->ops->release(t->be, t->ring);
    free(t->copy);
}

void toy_step_send(struct toy_step *t)
{
    EXPECT_MSG(t->be->ops->upload(t->be, t->block, t->copy, t->bytes) == 0, "%s", err_text());
}

void toy_step_fetch(struct toy_step *t)
{
    EXPECT_MSG(t->be->ops->download(t->be, t->copy, t->block, t->bytes) == 0, "%s", err_text());
    EXPECT_MSG(t->be->ops->sync(t->be) == 0, "%s", err_text());
}

void toy_step_text(struct toy_step *t, int slot, const int *tokens, int n, int n_prompt, int end)
{
    EXPECT(n >= 1 && n <= t->host.cap && end <= t->host.cap);
    memcpy(t->host.text + (size_t)slot * (size_t)t->host.cap, tokens, (size_t)n * sizeof *tokens);
    t->host.seq[slot] = (struct seq_state){.live = 1,
                                           .n = n,
                                           .n_prompt = n_prompt,
                                           .end = end,
                                           .context_end = t->host.cap,
                                           .serial = 1 + (uint32_t)slot};
}

void toy_step_tree(const struct toy_step *t, int slot, struct tree *out)
{
    const struct trees *from = &t->host.trees;
    const size_t first = (size_t)slot * (size_t)from->max_nodes;
    EXPECT(from->n[slot] <= out->max_nodes);
    for (int k = 0; k < from->n[slot]; k++) {
        const size_t i = first + (size_t)k;
        EXPECT(from->q_row[i] == -1);
        out->nodes[k] = (struct tree_node){.token = from->token[i],
                                           .parent = from->parent[i],
                                           .depth = from->depth[i],
                                           .log_q = from->log_q[i]};
    }
    out->n = from->n[slot];
}
