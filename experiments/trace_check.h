/* trace_check: is what a file says of itself possible? Every index and range is checked against the data set it points into before anyone
 * may use it. All: ERR_FORMAT naming file, row, what was expected and what was found. */
#ifndef EXPERIMENTS_TRACE_CHECK_H
#define EXPERIMENTS_TRACE_CHECK_H
#include "experiments/trace.h"

struct record_file;

int trace_has_nodes(const struct trace *t); /* 1: the trace level keeps nodes */
/* The requests, and of what else is in memory every row. */
int trace_check_requests(const struct trace *t, const struct record_file *f);
int trace_check_rows(const struct trace *t, const struct record_file *f);
/* One row of /steps of that file. One row of /nodes, which is node k of its step. */
int trace_check_step(const struct trace *t, int64_t i, const struct trace_step *s, const struct record_file *f);
int trace_check_node(const struct trace *t, int64_t step, int k, const struct trace_node *n);
#endif
