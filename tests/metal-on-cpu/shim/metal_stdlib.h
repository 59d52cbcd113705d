// What <metal_stdlib> declares, as far as the project's kernels need it, for clang.
#pragma once
#include "types.h"
#include "math.h"
#include "simdgroup.h"
#include "matrix.h"
#include "atomics.h"

#undef SITE
#undef HERE
