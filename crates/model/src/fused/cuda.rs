//! The kernels of `cuda/fused.cu`, launched on a tensor's own device and stream. Inputs are contiguous, or made so.

mod pictures;

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, Gemm, GemmConfig};
use candle_core::cuda_backend::cudarc::driver::{
    CudaView, DeviceRepr, LaunchConfig, PushKernelArg, ValidAsZeroBits,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, InplaceOp3, Layout, Result, Shape, Storage, Tensor,
};
use half::bf16;

use super::{KERNELS, Scale, Steps, Stored};

pub(super) use pictures::{attend_all, cut};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/fused.ptx"));
const MODULE: &str = "medfleet_fused";

/// Threads of a block that works on one row.
const ROW_THREADS: u32 = 256;
/// Warps of a block of `attend`, and the widest head it takes: as in the source.
const STEP_WARPS: u32 = 8;
const STEP_WIDTH_MAX: usize = 256;
const WARP: u32 = 32;
/// Keys a block of `attend` is given before they are shared with another.
const SHARE_KEYS: usize = 512;
/// Threads of a block of `likeliest`: the whole vocabulary is one row.
const VOCABULARY_THREADS: u32 = 1024;
/// Memory that the threads of a block share, at most, less what kernels use otherwise.
const SHARED_BYTES_MAX: usize = (48 << 10) - 1024;
/// Shares at most, so that putting them together stays small.
const SHARES_MAX: usize = 64;

/// Whether the operator ruled them out.
pub(super) fn ruled_out() -> bool {
    static GENERIC: OnceLock<bool> = OnceLock::new();
    *GENERIC.get_or_init(|| std::env::var(KERNELS).is_ok_and(|v| v == "generic"))
}

/// Whether there are kernels for this tensor.
pub(super) fn serves(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::BF16) && !ruled_out()
}

/// An element that kernels are made for.
trait Element: CudaDType + DeviceRepr + ValidAsZeroBits {
    /// How the names of its kernels end.
    const NAME: &'static str;
    /// 1.
    const ONE: Self;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const ONE: Self = 1.0;
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const ONE: Self = Self::ONE;
}

/// Calls a generic function with the element type of a tensor.
macro_rules! by_element {
    ($x:expr, $function:ident($($argument:expr),*)) => {
        match $x.dtype() {
            DType::BF16 => $function::<bf16>($($argument),*),
            _ => $function::<f32>($($argument),*),
        }
    };
}

/// The elements of a contiguous tensor on the GPU.
fn view<'a, T: Element>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
    elements(cuda(storage)?, layout)
}

fn words<'a>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, u32>> {
    let (from, to) = range(layout)?;
    Ok(cuda(storage)?.as_cuda_slice::<u32>()?.slice(from..to))
}

fn elements<'a, T: Element>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let (from, to) = range(layout)?;
    Ok(storage.as_cuda_slice::<T>()?.slice(from..to))
}

fn cuda(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => candle_core::bail!("a tensor is not on the GPU"),
    }
}

fn range(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => candle_core::bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// A kernel for an element type. (A macro, since candle does not export the type of a function.)
macro_rules! kernel {
    ($device:expr, $name:literal, $element:ty) => {
        $device.get_or_load_custom_func(
            &format!(concat!($name, "_{}"), <$element>::NAME),
            MODULE,
            PTX,
        )?
    };
}

fn tensor<T: CudaDType>(
    slice: candle_core::cuda_backend::cudarc::driver::CudaSlice<T>,
    device: &CudaDevice,
    shape: impl Into<Shape>,
) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(slice, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// A block a row.
fn by_row(rows: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (rows as u32, 1, 1),
        block_dim: (ROW_THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

fn rows_of(x: &Tensor) -> Result<(usize, usize)> {
    let width = x.dim(candle_core::D::Minus1)?;
    Ok((x.elem_count() / width, width))
}

pub(super) fn norm(x: &Tensor, of: Scale, residual: Option<&Tensor>) -> Result<Option<Tensor>> {
    let (x, residual) = (
        x.contiguous()?,
        residual.map(Tensor::contiguous).transpose()?,
    );
    by_element!(x, norm_of(&x, of, residual.as_ref())).map(Some)
}

fn norm_of<T: Element>(x: &Tensor, of: Scale, residual: Option<&Tensor>) -> Result<Tensor> {
    let (rows, width) = rows_of(x)?;
    let device = x.device().as_cuda_device()?;
    let held = (
        x.storage_and_layout(),
        of.scale.storage_and_layout(),
        residual.map(Tensor::storage_and_layout),
    );
    let input = view::<T>(&held.0.0, held.0.1)?;
    let scale = view::<f32>(&held.1.0, held.1.1)?;
    let residual = match &held.2 {
        Some((storage, layout)) => Some(view::<T>(storage, layout)?),
        None => None,
    };
    // SAFETY: the kernel writes every element.
    let out = unsafe { device.alloc::<T>(rows * width)? };
    let kernel = kernel!(device, "norm", T);
    let (width_i, eps, nothing) = (width as i32, of.eps, 0_usize);
    let mut launch = kernel.builder();
    launch.arg(&input).arg(&scale);
    match &residual {
        Some(residual) => launch.arg(residual),
        None => launch.arg(&nothing),
    };
    launch.arg(&out).arg(&width_i).arg(&eps);
    // SAFETY: the arguments are those of `norm` in the source; all rows lie within the buffers.
    unsafe { launch.launch(by_row(rows)) }.w()?;
    Ok(tensor(out, device, x.shape()))
}

pub(super) fn norm_rope(
    x: &Tensor,
    of: Scale,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Option<Tensor>> {
    if !x.dim(2)?.is_multiple_of(2) {
        return Ok(None);
    }
    let x = x.contiguous()?;
    let angles = (cos.contiguous()?, sin.contiguous()?);
    by_element!(x, norm_rope_of(&x, of, (&angles.0, &angles.1))).map(Some)
}

fn norm_rope_of<T: Element>(
    x: &Tensor,
    of: Scale,
    (cos, sin): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let (rows, heads, width) = x.dims3()?;
    let device = x.device().as_cuda_device()?;
    let held = (
        x.storage_and_layout(),
        of.scale.storage_and_layout(),
        cos.storage_and_layout(),
        sin.storage_and_layout(),
    );
    let input = view::<T>(&held.0.0, held.0.1)?;
    let scale = view::<f32>(&held.1.0, held.1.1)?;
    let cos = view::<T>(&held.2.0, held.2.1)?;
    let sin = view::<T>(&held.3.0, held.3.1)?;
    // SAFETY: the kernel writes every element.
    let out = unsafe { device.alloc::<T>(rows * heads * width)? };
    let kernel = kernel!(device, "norm_rope", T);
    let (heads_i, width_i, eps) = (heads as i32, width as i32, of.eps);
    let mut launch = kernel.builder();
    launch.arg(&input).arg(&scale).arg(&cos).arg(&sin).arg(&out);
    launch.arg(&heads_i).arg(&width_i).arg(&eps);
    let config = LaunchConfig {
        grid_dim: ((rows * heads) as u32, 1, 1),
        block_dim: (WARP * 4, 1, 1),
        shared_mem_bytes: (width * size_of::<f32>()) as u32,
    };
    // SAFETY: the arguments are those of `norm_rope`; its shared memory holds one head.
    unsafe { launch.launch(config) }.w()?;
    Ok(tensor(out, device, x.shape()))
}

pub(super) fn gelu_times(gate: &Tensor, up: Option<&Tensor>) -> Result<Option<Tensor>> {
    let (gate, up) = (gate.contiguous()?, up.map(Tensor::contiguous).transpose()?);
    by_element!(gate, gelu_times_of(&gate, up.as_ref())).map(Some)
}

fn gelu_times_of<T: Element>(gate: &Tensor, up: Option<&Tensor>) -> Result<Tensor> {
    let count = gate.elem_count();
    let device = gate.device().as_cuda_device()?;
    let held = (
        gate.storage_and_layout(),
        up.map(Tensor::storage_and_layout),
    );
    let gates = view::<T>(&held.0.0, held.0.1)?;
    let ups = match &held.1 {
        Some((storage, layout)) => Some(view::<T>(storage, layout)?),
        None => None,
    };
    // SAFETY: the kernel writes every element.
    let out = unsafe { device.alloc::<T>(count)? };
    let kernel = kernel!(device, "gelu_times", T);
    let nothing = 0_usize;
    let mut launch = kernel.builder();
    launch.arg(&gates);
    match &ups {
        Some(ups) => launch.arg(ups),
        None => launch.arg(&nothing),
    };
    launch.arg(&out).arg(&count);
    let config = LaunchConfig {
        grid_dim: (count.div_ceil(ROW_THREADS as usize) as u32, 1, 1),
        block_dim: (ROW_THREADS, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are those of `gelu_times`, which stays below `count`.
    unsafe { launch.launch(config) }.w()?;
    Ok(tensor(out, device, gate.shape()))
}

pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Option<Tensor>> {
    let (x, bias) = (x.contiguous()?, bias.contiguous()?);
    if !weight.is_contiguous() {
        return Ok(None);
    }
    by_element!(x, linear_of(&x, weight, &bias)).map(Some)
}

/// The bias in every row, then the product added to it: cuBLAS sums in f32 and rounds what it stores.
fn linear_of<T: Element>(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor>
where
    CudaBlas: Gemm<T>,
{
    let (rows, input) = x.dims2()?;
    let output = weight.dim(0)?;
    let device = x.device().as_cuda_device()?;
    let held = (
        x.storage_and_layout(),
        weight.storage_and_layout(),
        bias.storage_and_layout(),
    );
    let inputs = view::<T>(&held.0.0, held.0.1)?;
    let weights = view::<T>(&held.1.0, held.1.1)?;
    let biases = view::<T>(&held.2.0, held.2.1)?;
    // SAFETY: the kernel writes every element.
    let mut out = unsafe { device.alloc::<T>(rows * output)? };
    let kernel = kernel!(device, "spread", T);
    let width_i = output as i32;
    let mut launch = kernel.builder();
    launch.arg(&biases).arg(&out).arg(&width_i);
    let config = LaunchConfig {
        grid_dim: (rows as u32, (output as u32).div_ceil(ROW_THREADS), 1),
        block_dim: (ROW_THREADS, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are those of `spread`, which stays within a row.
    unsafe { launch.launch(config) }.w()?;
    // cuBLAS counts by columns, so it sees every matrix transposed: outᵀ [output, rows] = weight × xᵀ.
    let product = GemmConfig {
        transa: cublasOperation_t::CUBLAS_OP_T,
        transb: cublasOperation_t::CUBLAS_OP_N,
        m: output as i32,
        n: rows as i32,
        k: input as i32,
        alpha: T::ONE,
        lda: input as i32,
        ldb: input as i32,
        beta: T::ONE,
        ldc: output as i32,
    };
    // SAFETY: the sizes are those of the buffers.
    unsafe {
        device
            .cublas_handle()
            .gemm(product, &weights, &inputs, &mut out)
    }
    .w()?;
    Ok(tensor(out, device, (rows, output)))
}

pub(super) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    by_element!(x, layer_norm_of(&x, (weight, bias), eps)).map(Some)
}

fn layer_norm_of<T: Element>(
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    eps: f32,
) -> Result<Tensor> {
    let (rows, width) = rows_of(x)?;
    let device = x.device().as_cuda_device()?;
    let held = (
        x.storage_and_layout(),
        weight.storage_and_layout(),
        bias.storage_and_layout(),
    );
    let input = view::<T>(&held.0.0, held.0.1)?;
    let weights = view::<f32>(&held.1.0, held.1.1)?;
    let biases = view::<f32>(&held.2.0, held.2.1)?;
    // SAFETY: the kernel writes every element.
    let out = unsafe { device.alloc::<T>(rows * width)? };
    let kernel = kernel!(device, "layer_norm", T);
    let width_i = width as i32;
    let mut launch = kernel.builder();
    launch.arg(&input).arg(&weights).arg(&biases).arg(&out);
    launch.arg(&width_i).arg(&eps);
    // SAFETY: the arguments are those of `layer_norm`; all rows lie within the buffers.
    unsafe { launch.launch(by_row(rows)) }.w()?;
    Ok(tensor(out, device, x.shape()))
}

pub(super) fn softmax(x: &Tensor, mask: Option<&Tensor>, scale: f32) -> Result<Option<Tensor>> {
    let (x, mask) = (x.contiguous()?, mask.map(Tensor::contiguous).transpose()?);
    by_element!(x, softmax_of(&x, mask.as_ref(), scale)).map(Some)
}

fn softmax_of<T: Element>(x: &Tensor, mask: Option<&Tensor>, scale: f32) -> Result<Tensor> {
    let (rows, keys) = rows_of(x)?;
    let device = x.device().as_cuda_device()?;
    let held = (x.storage_and_layout(), mask.map(Tensor::storage_and_layout));
    let input = view::<T>(&held.0.0, held.0.1)?;
    let masks = match &held.1 {
        Some((storage, layout)) => Some(view::<f32>(storage, layout)?),
        None => None,
    };
    let mask_rows = match mask {
        Some(mask) => mask.dim(1)?,
        None => 1,
    };
    // SAFETY: the kernel writes every element.
    let out = unsafe { device.alloc::<T>(rows * keys)? };
    let kernel = kernel!(device, "softmax", T);
    let (keys_i, mask_rows_i, nothing) = (keys as i32, mask_rows as i32, 0_usize);
    let mut launch = kernel.builder();
    launch.arg(&input);
    match &masks {
        Some(masks) => launch.arg(masks),
        None => launch.arg(&nothing),
    };
    let row_bytes = keys * size_of::<f32>();
    let holds = i32::from(row_bytes <= SHARED_BYTES_MAX);
    launch.arg(&out).arg(&keys_i).arg(&mask_rows_i).arg(&scale);
    launch.arg(&holds);
    let config = LaunchConfig {
        shared_mem_bytes: if holds == 1 { row_bytes as u32 } else { 0 },
        ..by_row(rows)
    };
    // SAFETY: the arguments are those of `softmax`; the mask has `mask_rows` rows of `keys`.
    unsafe { launch.launch(config) }.w()?;
    Ok(tensor(out, device, x.shape()))
}

pub(super) fn attend(
    query: &Tensor,
    stored: Stored,
    steps: &Steps,
    scale: f32,
) -> Result<Option<Tensor>> {
    if query.dim(2)? > STEP_WIDTH_MAX {
        return Ok(None);
    }
    let query = query.contiguous()?;
    by_element!(query, attend_of(&query, stored, steps, scale)).map(Some)
}

fn attend_of<T: Element>(
    query: &Tensor,
    stored: Stored,
    steps: &Steps,
    scale: f32,
) -> Result<Tensor> {
    let (_, heads, width) = query.dims3()?;
    let (_, kv_heads, stored_width) = stored.keys.dims3()?;
    if stored_width != width || heads % kv_heads != 0 {
        candle_core::bail!("{heads} heads of {width} cannot look at {kv_heads} of {stored_width}");
    }
    let device = query.device().as_cuda_device()?;
    let shares = steps.seen_max.div_ceil(SHARE_KEYS).clamp(1, SHARES_MAX);
    let held = (
        query.storage_and_layout(),
        stored.keys.storage_and_layout(),
        stored.values.storage_and_layout(),
        steps.steps.storage_and_layout(),
        steps.blocks.storage_and_layout(),
    );
    let queries = view::<T>(&held.0.0, held.0.1)?;
    let keys = view::<T>(&held.1.0, held.1.1)?;
    let values = view::<T>(&held.2.0, held.2.1)?;
    let of_steps = words(&held.3.0, held.3.1)?;
    let blocks = words(&held.4.0, held.4.1)?;
    let parts = steps.count * heads * if shares > 1 { shares } else { 0 };
    // SAFETY: the kernels write every element that is read.
    let (out, part) = unsafe {
        let part = device.alloc::<f32>((parts * (width + 2)).max(1))?;
        (device.alloc::<T>(steps.count * heads * width)?, part)
    };
    let kernel = kernel!(device, "attend", T);
    let block_tokens = steps.block_tokens as i32;
    let (heads_i, kv_heads_i, width_i) = (heads as i32, kv_heads as i32, width as i32);
    let mut launch = kernel.builder();
    launch.arg(&queries).arg(&keys).arg(&values).arg(&of_steps);
    launch.arg(&blocks).arg(&block_tokens).arg(&out).arg(&part);
    launch
        .arg(&heads_i)
        .arg(&kv_heads_i)
        .arg(&width_i)
        .arg(&scale);
    let config = LaunchConfig {
        grid_dim: (heads as u32, steps.count as u32, shares as u32),
        block_dim: (STEP_WARPS * WARP, 1, 1),
        shared_mem_bytes: STEP_WARPS * (width * size_of::<f32>()) as u32,
    };
    // SAFETY: the arguments are those of `attend`; every block number is of this pool, as the forward's plan checked.
    unsafe { launch.launch(config) }.w()?;
    if shares > 1 {
        let kernel = kernel!(device, "gather", T);
        let shares_i = shares as i32;
        let mut launch = kernel.builder();
        launch.arg(&part).arg(&out).arg(&shares_i).arg(&width_i);
        // SAFETY: the arguments are those of `gather`; `part` holds the shares of every (step, head).
        unsafe { launch.launch(by_row(steps.count * heads)) }.w()?;
    }
    Ok(tensor(out, device, (steps.count, heads * width)))
}

pub(super) fn likeliest(logits: &Tensor, never: u32) -> Result<Option<Tensor>> {
    let logits = logits.contiguous()?;
    by_element!(logits, likeliest_of(&logits, never)).map(Some)
}

fn likeliest_of<T: Element>(logits: &Tensor, never: u32) -> Result<Tensor> {
    let (rows, width) = rows_of(logits)?;
    let device = logits.device().as_cuda_device()?;
    let held = logits.storage_and_layout();
    let input = view::<T>(&held.0, held.1)?;
    // SAFETY: the kernel writes every element.
    let out = unsafe { device.alloc::<u32>(rows * 2)? };
    let kernel = kernel!(device, "likeliest", T);
    let width_i = width as i32;
    let mut launch = kernel.builder();
    launch.arg(&input).arg(&out).arg(&width_i).arg(&never);
    let config = LaunchConfig {
        block_dim: (VOCABULARY_THREADS, 1, 1),
        ..by_row(rows)
    };
    // SAFETY: the arguments are those of `likeliest`; all rows lie within the buffers.
    unsafe { launch.launch(config) }.w()?;
    Ok(tensor(out, device, (rows, 2)))
}

pub(super) fn scatter(x: &Tensor, slots: &Tensor, storage: &Tensor) -> Result<bool> {
    storage.inplace_op3(&x.contiguous()?, slots, &Scatter)?;
    Ok(true)
}

/// Rows into their slots, in place.
struct Scatter;

impl InplaceOp3 for Scatter {
    fn name(&self) -> &'static str {
        "scatter"
    }

    fn cpu_fwd(
        &self,
        _: &mut CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        candle_core::bail!("scatter is for the GPU")
    }

    fn cuda_fwd(
        &self,
        storage: &mut CudaStorage,
        storage_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
        slots: &CudaStorage,
        slots_layout: &Layout,
    ) -> Result<()> {
        let place = (storage, storage_layout);
        let slots = (slots, slots_layout);
        match x.dtype() {
            DType::BF16 => scatter_of::<bf16>(place, (x, x_layout), slots),
            _ => scatter_of::<f32>(place, (x, x_layout), slots),
        }
    }
}

fn scatter_of<T: Element>(
    (storage, storage_layout): (&mut CudaStorage, &Layout),
    (x, x_layout): (&CudaStorage, &Layout),
    (slots, slots_layout): (&CudaStorage, &Layout),
) -> Result<()> {
    let device = x.device().clone();
    let rows = x_layout.shape().dims()[0];
    let width = x_layout.shape().elem_count() / rows.max(1);
    if storage_layout.shape().dims()[1..] != x_layout.shape().dims()[1..]
        || slots_layout.shape().elem_count() != rows
    {
        candle_core::bail!("rows of {width} in {rows} slots do not fit the storage");
    }
    let input = elements::<T>(x, x_layout)?;
    let (from, to) = range(slots_layout)?;
    let slots = slots.as_cuda_slice::<u32>()?.slice(from..to);
    let (from, to) = range(storage_layout)?;
    let mut out = storage.as_cuda_slice_mut::<T>()?.slice_mut(from..to);
    let kernel = kernel!(device, "scatter", T);
    let width_i = width as i32;
    let mut launch = kernel.builder();
    launch.arg(&input).arg(&slots).arg(&mut out).arg(&width_i);
    // SAFETY: the arguments are those of `scatter`; slots are of this pool, as the forward's plan checked.
    unsafe { launch.launch(by_row(rows)) }.w()?;
    Ok(())
}
