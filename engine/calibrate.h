/* calibrate: static scales of activations for a model whose checkpoint has none, measured over a text. */
#ifndef ENGINE_CALIBRATE_H
#define ENGINE_CALIBRATE_H
#include "engine/model.h"

enum { CALIBRATE_TOKENS = 4096 };

/* The text once through the model, its activations unrounded; then input_scale of each FP8 matrix is the largest number it multiplied / 448.
 * At most CALIBRATE_TOKENS tokens and the model's context are read. m was made with model_opts.calibrates and has no experts. ERR_LIMIT: no
 * token, or one that the model does not know; ERR_MEMORY, ERR_DEVICE. */
int model_calibrate(struct model *m, const int *tokens, int n);
#endif
