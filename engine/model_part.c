/* model_part: how a model is cut for a group of ranks. Only cuts that leave every rank the same work are
 * made: whole key/value heads with the queries that read them, and inner columns in the 16s that the products
 * need. */
#include "engine/err.h"
#include "engine/model.h"
#include <stdio.h>

enum { TILE = 16 };

static int fits(const struct model_config *c, int world)
{
    return c->kv_heads % world == 0 && c->heads % world == 0 && (c->ffn - c->ffn_pad) % world == 0 &&
           (c->ffn_dense - c->ffn_dense_pad) % world == 0;
}

/* Of a width, so many columns a rank, and zeros up to whole tiles. */
static int columns(int stored, int world)
{
    return (stored / world + TILE - 1) / TILE * TILE;
}

static int head_rows(const struct model_config *c, int world)
{
    const int each = (c->vocab + world - 1) / world;
    return (each + TILE - 1) / TILE * TILE;
}

/* "1, 2, 4": no world is larger than the number of key/value heads. */
static void list_worlds(const struct model_config *c, char *out, size_t cap)
{
    size_t at = 0;
    out[0] = 0;
    for (int world = 1; world <= c->kv_heads && at + 16 < cap; world++)
        if (fits(c, world))
            at += (size_t)snprintf(out + at, cap - at, at ? ", %d" : "%d", world);
}

static int check_world(const struct model_config *c, int world)
{
    char worlds[128], dense[48] = "";
    if (fits(c, world))
        return 0;
    list_worlds(c, worlds, sizeof worlds);
    if (c->llama4)
        snprintf(dense, sizeof dense, " and, in dense layers, %d", c->ffn_dense - c->ffn_dense_pad);
    FAIL(ERR_CONFIG,
         "a world of %d ranks does not fit this model: expected one that divides its %d heads, its %d "
         "key/value heads and its MLP width of %d%s; these do: %s",
         world, c->heads, c->kv_heads, c->ffn - c->ffn_pad, dense, worlds);
}

int model_part_of(struct model_part *part, const struct model_config *c, struct shard shard)
{
    const int world = shard.world > 1 ? shard.world : 1;
    if (shard.rank < 0 || shard.rank >= world)
        FAIL(ERR_CONFIG, "rank %d: expected a rank from 0 to %d, the last of a world of %d", shard.rank,
             world - 1, world);
    if (world == 1) {
        *part = (struct model_part){c->heads, c->kv_heads, c->vocab, 0, c->vocab, c->ffn, c->ffn_dense};
        return 0;
    }
    TRY(check_world(c, world));
    const int rows = head_rows(c, world);
    if (rows * (long)(world - 1) >= c->vocab)
        FAIL(
            ERR_CONFIG,
            "a world of %d ranks does not fit this model: %d rows of its head a rank, in 16s, leave the last "
            "of %d tokens to fewer ranks",
            world, rows, c->vocab);
    const int first = rows * shard.rank, left = c->vocab - first;
    *part = (struct model_part){c->heads / world,
                                c->kv_heads / world,
                                left < rows ? left : rows,
                                first,
                                rows,
                                columns(c->ffn - c->ffn_pad, world),
                                columns(c->ffn_dense - c->ffn_dense_pad, world)};
    return 0;
}
