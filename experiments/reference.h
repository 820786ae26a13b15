/* reference: the outputs of an earlier run, for strategies that replay them (struct draft_env.reference) and for mode score. */
#ifndef EXPERIMENTS_REFERENCE_H
#define EXPERIMENTS_REFERENCE_H
#include <stdint.h>

struct reference; /* opaque */

/* Takes the arm of the result file whose strategy is none, of the same rule if there is one, else the first arm. key: the option that
 * names the file, for messages. ERR_CONFIG: another model, no requests; and the errors of trace_read. */
int  reference_open(struct reference **out, const char *key, const char *path, const char *rule, uint64_t fingerprint);
void reference_close(struct reference *r); /* accepts NULL */
/* As draft_env.reference, with the struct reference as ctx. */
int  reference_find(void *ctx, uint32_t request, const int **tokens);
#endif
