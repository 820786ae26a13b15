/* run_plan: what `run --dry-run` says about the model: what would lie on the device of one rank. */
#ifndef EXPERIMENTS_RUN_PLAN_H
#define EXPERIMENTS_RUN_PLAN_H
#include "engine/model.h"
#include "experiments/config.h"

/* To stdout. A model directory that is not there gets a sentence, one that is wrong the errors of model_load. */
int run_plan(const struct config *cfg, struct shard shard);
#endif
