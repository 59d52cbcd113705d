// What the host hands to kernels beside buffers. The build makes Rust structures of these, so a field is a uint, an int, a
// float or a ulong, and every structure is a whole number of its widest field.

// rows of runs, each run normalised by itself
struct NormParams {
    uint width;
    float eps;
};
