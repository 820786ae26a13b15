/* analyze_score: the table of a run that scored given answers. */
#ifndef EXPERIMENTS_ANALYZE_SCORE_H
#define EXPERIMENTS_ANALYZE_SCORE_H
#include "experiments/summary.h"
#include "experiments/table.h"

/* The text form has two views: how well the arms predict the answers, and how near they are to the reference. */
enum { ANALYZE_SCORE_FIT = 1, ANALYZE_SCORE_NEAR = 2 };
extern const struct table_column analyze_score_columns[];
extern const int analyze_score_n_columns;

/* Into the last row of x, all but arm, lossy and group. */
void analyze_score_cells(struct table *x, const struct trace *t, const struct summary_row *row);
/* What the columns mean, up to the sentence about intervals. */
extern const char analyze_score_legend[];
#endif
