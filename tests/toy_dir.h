/* toy_dir: a folder with all that `specbed run` needs: a two-layer Llama of random weights under the golden llama3 tokenizer, eight prompts, two
 * of them with two turns, and an experiment file. */
#ifndef TESTS_TOY_DIR_H
#define TESTS_TOY_DIR_H

enum { TOY_DIR_VOCAB = 2048, TOY_DIR_PROMPTS = 8, TOY_DIR_REQUESTS = 10, TOY_DIR_POSITIONS = 8192 };

struct toy_dir {
    char path[64], model[80], config[80]; /* the folder; in it: the model's directory, the experiment */
    char out[80];                         /* where a test may write its results */
};

/* golden: tests/golden. 0, or -1 with a message on stderr. */
int  toy_dir_make(struct toy_dir *d, const char *golden);
void toy_dir_remove(struct toy_dir *d);
#endif
