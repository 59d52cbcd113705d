//! Writing quantised weights: codes and scales as MLX's, whole checkpoints as mlx_lm's, and what happens when one is killed.

mod goldens;
