/* whatif_cost: what a verification pass takes, from measurements: the points of `specbed bench step --cost-table`, which time a pass by its
 * rows and by the tokens before them. Between points it is linear in both; outside of the rows that were measured nothing is claimed. */
#ifndef EXPERIMENTS_WHATIF_COST_H
#define EXPERIMENTS_WHATIF_COST_H

struct whatif_point {
    int rows, context;
    double seconds, spread; /* median of the pass on its device; relative standard deviation of one */
    double experts;         /* distinct ones a layer, the mean; 0: none */
};

struct whatif_costs {
    struct whatif_point *at; /* owned [n], by context, then rows: a full grid */
    int *rows, *context;     /* owned [n_rows], [n_context], rising */
    int n_rows, n_context, n;
    char *model, *device;    /* owned: what was measured */
};

/* ERR_IO; ERR_FORMAT: no such table, or one with holes. */
int  whatif_costs_read(struct whatif_costs *c, const char *path);
void whatif_costs_deinit(struct whatif_costs *c); /* a zeroed struct is fine */
int  whatif_costs_max_rows(const struct whatif_costs *c);
/* 1 <= rows <= the most measured. */
double whatif_seconds(const struct whatif_costs *c, int rows, int context);
double whatif_experts(const struct whatif_costs *c, int rows, int context);
double whatif_spread(const struct whatif_costs *c); /* the median point's */
#endif
