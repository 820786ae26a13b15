/* analyze_report: what the parts of analyze share. A report is a list of tables; each is made by one file and printed by analyze.c. */
#ifndef EXPERIMENTS_ANALYZE_REPORT_H
#define EXPERIMENTS_ANALYZE_REPORT_H
#include "experiments/analyze.h"
#include "experiments/notes.h"
#include "experiments/table.h"

struct analyze_report {
    const struct trace *t;
    const struct analyze_opts *opts;
    struct summary summary;
    struct notes notes;
    struct table table[ANALYZE_TABLES];
};

/* Views of the text form; the total speed is worth its room only where sequences shared steps. */
enum { ANALYZE_VIEW = 1, ANALYZE_SPEED = 2, ANALYZE_SPEED_SHARED = 4, ANALYZE_VIEWS = 7 };

/* What one table is: the key in JSON, its columns, who fills it (NULL: nobody), and what the text says under it ("" for nothing). */
struct analyze_section {
    const char *key;
    const struct table_column *columns;
    const int *n_columns;
    int (*fill)(struct table *x, struct analyze_report *r);
    const char *legend;
};

extern const struct table_column analyze_position_columns[], analyze_definition_columns[], analyze_comparison_columns[], analyze_bin_columns[], analyze_expert_columns[],
    analyze_whatif_columns[], analyze_best_columns[], analyze_backtest_columns[],
    analyze_economics_columns[];
extern const int analyze_n_position_columns, analyze_n_definition_columns, analyze_n_comparison_columns, analyze_n_bin_columns, analyze_n_expert_columns, analyze_n_whatif_columns,
    analyze_n_best_columns, analyze_n_backtest_columns, analyze_n_economics_columns;
extern const char analyze_definition_legend[], analyze_comparison_legend[], analyze_bin_legend[], analyze_expert_legend[],
    analyze_whatif_legend[], analyze_best_legend[], analyze_backtest_legend[], analyze_economics_legend[];
int analyze_fill_positions(struct table *x, struct analyze_report *r);   /* ERR_MEMORY */
int analyze_fill_definitions(struct table *x, struct analyze_report *r); /* ERR_MEMORY */
int analyze_fill_comparisons(struct table *x, struct analyze_report *r); /* ERR_MEMORY */
/* And the tables of the best and of back-tests. ERR_CONFIG: not determined by the trace; ERR_IO, ERR_FORMAT of the cost table. */
int analyze_fill_whatif(struct table *x, struct analyze_report *r);
int analyze_fill_bins(struct table *x, struct analyze_report *r);        /* the axes that were asked for. ERR_MEMORY; ERR_CONFIG: not in the trace */
int analyze_fill_experts(struct table *x, struct analyze_report *r);     /* a row for each arm and number of rows of a pass, none for dense models. ERR_MEMORY */
int analyze_fill_economics(struct table *x, struct analyze_report *r);   /* after the experts. ERR_IO, ERR_FORMAT of the cost table */
#endif
