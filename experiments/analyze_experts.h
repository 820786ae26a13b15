/* analyze_experts: how many different experts a pass reads, by its rows; nothing for dense models. */
#ifndef EXPERIMENTS_ANALYZE_EXPERTS_H
#define EXPERIMENTS_ANALYZE_EXPERTS_H
#include "experiments/table.h"
#include "experiments/trace.h"

enum { ANALYZE_EXPERTS_VIEW = 1 };
extern const struct table_column analyze_experts_columns[];
extern const int analyze_experts_n_columns;
extern const char analyze_experts_legend[];

/* A row for each arm and number of rows of a pass. ERR_MEMORY. */
int analyze_experts_fill(struct table *x, const struct trace *t);
#endif
