/* toy: the model of the tests: random weights, 2 layers, dim 64, vocab 97, four query heads on two key heads. The same
 * numbers on every run; built in memory in a few milliseconds. */
#ifndef TESTS_TOY_H
#define TESTS_TOY_H
#include "engine/model.h"

enum { TOY_VOCAB = 97, TOY_POSITIONS = 1024, TOY_SEED = 1 };

struct toy {
    struct backend be;  /* owned */
    struct model model; /* owned, on be */
};

struct model_config toy_config(void);
int  toy_open(struct toy *t, int threads); /* ERR_* of backend_open and model_synthetic */
void toy_close(struct toy *t);             /* a zeroed struct is fine */
#endif
