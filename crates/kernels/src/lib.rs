//! CPU kernels with run-time dispatch. Empty so far: the model computes through candle's products, and kernels come
//! with the speed work, each with the measurement that justifies it.
