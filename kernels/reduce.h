/* reduce: what the ranks of a group hold parts of, made whole in every rank. A rank is a device's (or a thread's) share of one model;
 * all ranks of a group call the same operations in the same order with the same shapes.
 *
 * reduce: y[r, :] += sum over ranks p of part_p[r, :], then norm
 * shapes   part f32 [rows, n], this rank's term; y f32 [rows, n], the same in every rank; norm.x is y
 * math     s = wire(part_0); s = s + wire(part_p), p = 1, 2, ... ascending, f32; y = y + s; wire rounds to what travels: nothing (F32), or
 *          to BF16 to nearest even. The order is that of ranks, never of arrival, so every rank has the same bits in every run; a row's bits depend
 *          on the row alone
 * moves    (world - 1) * rows * n * sizeof wire over the links in each direction, one shot: every rank sends its whole part to every other
 *
 * gather: whole[r, :] = part_0[r, :], part_1[r, :], ... side by side
 * shapes   part f32 [rows, n_p]; whole f32 [rows, n], the same in every rank; n_p = each, on the last rank what is left of n
 * moves    (world - 1) * rows * each * 4 bytes out of every rank
 *
 * A rank alone (engine/comm.h) takes every other rank's part to be its own, through memory as large as what the others would send;
 * columns of `whole` that its own part is too narrow for stay as they are. */
#ifndef KERNELS_REDUCE_H
#define KERNELS_REDUCE_H
#include "kernels/rmsnorm.h"

enum wire { WIRE_F32, WIRE_BF16 };

struct reduce {
    const float *part;
    float *y;
    struct rmsnorm norm;
    int rows, n;
    enum wire wire;
};

struct gather {
    const float *part;
    float *whole;
    int rows, n, each; /* (world - 1) * each < n <= world * each */
};

/* Of all ranks at once: part[p] is rank p's; a is a rank's own, whose part is not read. norm as rmsnorm_ref. */
void reduce_sum(const struct reduce *a, const float *const *part, int world); /* all but the norm */
void reduce_ref(const struct reduce *a, const float *const *part, int world);
void gather_ref(const struct gather *a, const float *const *part, int world);
#endif
