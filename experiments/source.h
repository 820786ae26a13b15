/* source: where the numbers of a table come from: file, model, device, sampling, level of the trace. */
#ifndef EXPERIMENTS_SOURCE_H
#define EXPERIMENTS_SOURCE_H
#include "experiments/trace.h"
#include <jansson.h>
#include <stdio.h>

int source_print(const struct trace *t, FILE *out); /* one line where it fits DISPLAY_WIDTH. ERR_MEMORY */
json_t *source_json(const struct trace *t);         /* the caller's; NULL: out of memory */
#endif
