/* Any bytes as an experiment file: refused with a message, or read, printed and read again to the same. */
#include "engine/err.h"
#include "experiments/config.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void check(int ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct config c, again, cell;
    char *label;
    if (config_parse(&c, (const char *)data, n, "fuzz.yaml", NULL, 0)) {
        check(err_text()[0] != 0);
        return 0;
    }
    char *first = config_dump(&c);
    check(first && config_parse(&again, first, strlen(first), "dump.yaml", NULL, 0) == 0);
    char *second = config_dump(&again);
    check(second && !strcmp(first, second));
    int cells = config_cells(&c);
    for (int i = 0; i < cells; i += cells / 4 + 1)
        if (config_cell(&c, i, &cell, &label) == 0) {
            free(label);
            config_deinit(&cell);
        }
    free(first);
    free(second);
    config_deinit(&c);
    config_deinit(&again);
    return 0;
}
