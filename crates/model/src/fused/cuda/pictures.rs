//! What is done with pictures alone: cutting them into patches, and the attention of the vision tower.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{CudaDevice, DType, Result, Tensor};
use half::bf16;

use super::super::{Picture, Stored};
use super::{MODULE, PTX, ROW_THREADS, ruled_out, tensor, view};

/// Queries of a block of `attend_all`, its threads, and the widths of heads that it is made for: as in the source.
const ALL_QUERIES: usize = 128;
const ALL_THREADS: u32 = 128;
const ALL_WIDTHS: [usize; 3] = [48, 64, 72];
/// Elements of bf16 in 16 bytes, which `attend_all` copies at once.
const ALL_ALIGNMENT: usize = 8;

pub(in crate::fused) fn attend_all(
    query: &Tensor,
    of: Stored,
    heads: usize,
    scale: f32,
) -> Result<Option<Tensor>> {
    let (hidden, keys) = (query.dim(1)?, of.keys.dim(0)?);
    let width = hidden / heads;
    let fits = |x: &Tensor| x.dtype() == DType::BF16 && x.rank() == 2 && x.dims()[1] == hidden;
    if !ALL_WIDTHS.contains(&width)
        || width * heads != hidden
        || keys == 0
        || of.values.dims() != of.keys.dims()
        || ![query, of.keys, of.values].into_iter().all(fits)
    {
        return Ok(None);
    }
    let (query, keys, values) = (
        query.contiguous()?,
        of.keys.contiguous()?,
        of.values.contiguous()?,
    );
    let begins_whole = |x: &Tensor| x.layout().start_offset().is_multiple_of(ALL_ALIGNMENT);
    if ![&query, &keys, &values].into_iter().all(begins_whole) {
        return Ok(None);
    }
    attend_all_of(&query, (&keys, &values), heads, scale).map(Some)
}

fn attend_all_of(
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    heads: usize,
    scale: f32,
) -> Result<Tensor> {
    let (rows, hidden) = query.dims2()?;
    let device = query.device().as_cuda_device()?;
    let held = (
        query.storage_and_layout(),
        key.storage_and_layout(),
        value.storage_and_layout(),
    );
    let queries = view::<bf16>(&held.0.0, held.0.1)?;
    let keys = view::<bf16>(&held.1.0, held.1.1)?;
    let values = view::<bf16>(&held.2.0, held.2.1)?;
    // SAFETY: the kernel writes every element.
    let out = unsafe { device.alloc::<bf16>(rows * hidden)? };
    let name = format!("attend_all_{}_bf16", hidden / heads);
    let kernel = device.get_or_load_custom_func(&name, MODULE, PTX)?;
    let (rows_i, keys_i) = (rows as i32, key.dim(0)? as i32);
    // The kernel's powers are of 2.
    let factor = scale * std::f32::consts::LOG2_E;
    let mut launch = kernel.builder();
    launch.arg(&queries).arg(&keys).arg(&values).arg(&out);
    launch.arg(&rows_i).arg(&keys_i).arg(&factor);
    let config = LaunchConfig {
        grid_dim: (rows.div_ceil(ALL_QUERIES) as u32, heads as u32, 1),
        block_dim: (ALL_THREADS, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are those of `attend_all`; rows are as long as the heads are wide together, and begin on 16 bytes.
    unsafe { launch.launch(config) }.w()?;
    Ok(tensor(out, device, (rows, hidden)))
}

pub(in crate::fused) fn cut(picture: Picture, device: &CudaDevice) -> Result<Option<Tensor>> {
    if ruled_out() {
        return Ok(None);
    }
    let Picture {
        pixels,
        side,
        channels,
        patch,
    } = picture;
    let (across, width) = (side / patch, 3 * patch * patch);
    let patches = across * across;
    if patches == 0 || pixels.len() != side * side * channels {
        candle_core::bail!(
            "a picture of {side} pixels a side cannot be cut into patches of {patch}"
        );
    }
    let samples = device.clone_htod(pixels)?;
    // SAFETY: the kernel writes every element.
    let out = unsafe { device.alloc::<f32>(patches * width)? };
    let kernel = device.get_or_load_custom_func("cut", MODULE, PTX)?;
    let (side_i, channels_i, patch_i) = (side as i32, channels as i32, patch as i32);
    let mut launch = kernel.builder();
    launch.arg(&samples).arg(&out);
    launch.arg(&side_i).arg(&channels_i).arg(&patch_i);
    let config = LaunchConfig {
        grid_dim: (patches as u32, (width as u32).div_ceil(ROW_THREADS), 1),
        block_dim: (ROW_THREADS, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are those of `cut`, which reads whole patches of the picture only.
    unsafe { launch.launch(config) }.w()?;
    Ok(Some(tensor(out, device, (patches, width))))
}
