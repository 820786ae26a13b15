/* config_cells: the cells that a file asks for: the product of its sweep, or its list of arms. config.c hands over the entries;
 * config_cells() and config_cell() of config.h stand here too. */
#ifndef EXPERIMENTS_CONFIG_CELLS_H
#define EXPERIMENTS_CONFIG_CELLS_H
#include "experiments/config.h"
#include "experiments/config_yaml.h"

int  config_is_sweep(const char *key); /* "sweep.draft.strategy" */
int  config_is_arms(const char *key);  /* "arms", "arms.0", "arms.0.draft.strategy" */
/* Entries with such keys. A list of arms replaces an earlier one. ERR_CONFIG, ERR_MEMORY. */
int  config_sweep_apply(struct config *c, const struct config_entry *e, const char *where);
int  config_arms_apply(struct config *c, const struct config_entry *e, const char *where);
void config_sweep_remove(struct config *c, const char *key); /* of this option, if there is one */
int  config_arms_set(const struct config *c, const char *key); /* 1: some arm sets this option */
/* A sweep or arms, not too many cells, none twice. */
int  config_cells_check(const struct config *c, const char *what);
void config_cells_print(const struct config *c, FILE *out); /* as YAML */
void config_cells_free(struct config *c);
#endif
