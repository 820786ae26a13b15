/* group: one loop a rank, in step. Every rank is given the same requests and takes the same decisions from the same logits, so there is
 * nothing to send but what the model's own sums need; what each step decided is compared all the same. A world of 1 is struct spec. */
#ifndef SPEC_GROUP_H
#define SPEC_GROUP_H
#include "engine/ranks.h"
#include "spec/loop.h"

struct spec_group;

/* As spec_open, spec_submit, ... (spec/loop.h) in every rank; opts.reference is called by several threads at once. What spec_group_step
 * lends is rank 0's. ERR_DEVICE: also a rank that decided something else, with both decisions. */
int  spec_group_open(struct spec_group **out, struct ranks *ranks, const struct spec_opts *opts);
void spec_group_close(struct spec_group *g); /* accepts NULL */
int  spec_group_submit(struct spec_group *g, const struct spec_request *r);
int  spec_group_step(struct spec_group *g, struct spec_step *out);
void spec_group_abort(struct spec_group *g);
/* Rank 0's loop, for what reads it alone: spec_active, spec_free_slots, spec_bytes. */
const struct spec *spec_group_first(const struct spec_group *g);
#endif
