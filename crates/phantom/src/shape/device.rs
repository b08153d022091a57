//! Devices: a tube in the windpipe, a catheter in a vein, a pacemaker.

use crate::anatomy::Anatomy;
use crate::chance::Chance;
use crate::plan::Device;
use crate::stroke::{Across, Line};

/// The lines of a device, strength 1.
pub(super) fn lines(device: Device, anatomy: &Anatomy, chance: &mut Chance) -> Vec<Line> {
    match device {
        Device::Tube => tube(anatomy, chance),
        Device::Catheter => catheter(chance),
        Device::Pacemaker => pacemaker(chance),
    }
}

fn tube(anatomy: &Anatomy, chance: &mut Chance) -> Vec<Line> {
    let tip = chance.between(-0.21, -0.165);
    let lean = chance.between(-0.008, 0.008);
    let points = (0..12)
        .map(|point| {
            let v = -0.60 + (tip + 0.60) * point as f32 / 11.0;
            [anatomy.windpipe.at(v) + lean * (v - tip) * 4.0, v]
        })
        .collect();
    vec![Line::even(points, 0.0075, Across::Hollow)]
}

fn catheter(chance: &mut Chance) -> Vec<Line> {
    let tip = chance.between(-0.06, 0.01);
    // From the neck on the right, or under the collar bone.
    let start = if chance.happens(0.5) {
        vec![[-0.085, -0.47], [-0.085, -0.40], [-0.075, -0.33]]
    } else {
        vec![
            [-0.28, -0.285],
            [-0.20, -0.315],
            [-0.13, -0.310],
            [-0.085, -0.285],
        ]
    };
    let mut points = start;
    points.extend([
        [-0.052, -0.22],
        [-0.046, -0.15],
        [-0.046, -0.10],
        [-0.042, tip],
    ]);
    vec![Line::even(points, 0.0034, Across::Flat)]
}

fn pacemaker(chance: &mut Chance) -> Vec<Line> {
    let [u, v] = [chance.between(0.225, 0.27), chance.between(-0.26, -0.215)];
    let (across, down) = (chance.between(0.022, 0.028), chance.between(0.012, 0.018));
    let case = Line::even(
        vec![
            [u - across * 0.5, v - down * 0.3],
            [u + across * 0.5, v + down * 0.3],
        ],
        0.022,
        Across::Flat,
    );
    let tip = [chance.between(0.09, 0.13), chance.between(0.15, 0.19)];
    let lead = vec![
        [u - 0.01, v - 0.02],
        [u - 0.06, v - 0.065],
        [0.12, -0.315],
        [0.05, -0.285],
        [-0.02, -0.235],
        [-0.05, -0.16],
        [-0.055, -0.06],
        [-0.06, 0.03],
        [-0.045, 0.10],
        [0.0, 0.15],
        [0.05, 0.172],
        tip,
    ];
    vec![case, Line::even(lead, 0.0030, Across::Flat)]
}
