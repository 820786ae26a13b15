/* toy_step: a struct step of any size on a backend, with a copy for the host: tests fill the copy, send it, run operations and look at what
 * came back. */
#ifndef TESTS_TOY_STEP_H
#define TESTS_TOY_STEP_H
#include "engine/backend.h"
#include "spec/tree.h"

enum { TOY_RING = 2, TOY_STOPS = 3, TOY_MOE_LAYERS = 37, TOY_TOP_K = 2, TOY_CHOICES = 128 };

struct toy_step {
    struct backend *be;
    struct step on;          /* what operations get: backend memory */
    struct step host;        /* the same arrays in the host's copy */
    void *block, *copy;      /* owned: backend memory and its copy */
    size_t bytes;
    uint64_t *counter, *host_counter;
    int *stop, *host_stop;   /* [TOY_STOPS] */
    int *chosen, *host_chosen; /* [TOY_MOE_LAYERS, rows, TOY_TOP_K], rows of TOY_CHOICES experts */
    void *ring;              /* owned: host memory of the backend [TOY_RING] entries */
};

void toy_step_open(struct toy_step *t, struct backend *be, const struct trees *sizes, int cap);
void toy_step_close(struct toy_step *t);
void toy_step_send(struct toy_step *t);  /* the copy to the backend */
void toy_step_fetch(struct toy_step *t); /* and back; waits */
/* A slot's text and state: live, of `n` tokens, that may grow to `end`. */
void toy_step_text(struct toy_step *t, int slot, const int *tokens, int n, int n_prompt, int end);
/* Random texts, trees, accepted paths and statistics in the copy: a function of seed. Some slots are not live, some texts about to end. */
void toy_step_fill(struct toy_step *t, uint32_t seed);
/* Caches of n layers of two kv heads for its slots, of unit bytes a component, filled with a function of the place; for step_commit. */
struct toy_cache {
    struct kv_layer *layers; /* backend */
    struct kv_layer host[3];
    int n;
    size_t bytes;            /* of one array */
};
enum { TOY_CACHE_DIM = 16, TOY_CACHE_HEADS = 2 };
void toy_cache_open(struct toy_cache *c, const struct toy_step *t, int n, enum kv_form form);
void toy_cache_close(struct toy_cache *c, const struct toy_step *t);
void toy_cache_fill(struct toy_cache *c, const struct toy_step *t);
unsigned char toy_cache_byte(int array, size_t i); /* what fill puts at byte i of array 2 * layer + (0 keys, 1 values) */
/* The operation's arguments; the record holds what rows chose. */
struct step_commit toy_step_commit(const struct toy_step *t, const struct toy_cache *c);
struct step_entry toy_step_entry(const struct toy_step *t, const struct step_commit *a, uint32_t seed);
/* What the copy says of a slot's tree. */
void toy_step_tree(const struct toy_step *t, int slot, struct tree *out);
#endif
