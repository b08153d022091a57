//! The plot of `bench scaling`: jobs a second over workers, both on logarithmic axes, so that a pool that scales is a straight
//! line. Points are measured, the grey line is a pool that is never idle, the dashed one is what the planner predicts.

use super::figures::{Figures, Point};
use super::{Args, Pool};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
/// Left, top, right and bottom of the field.
const FIELD: [f64; 4] = [64.0, 24.0, 616.0, 348.0];

/// Where values of a logarithmic axis are.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        Self {
            low: low / 1.3,
            high: high * 1.3,
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + part * (self.to - self.from)
    }

    /// Powers of two within it.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (low, high) = (self.low, self.high);
        (-20..40)
            .map(|power| 2.0_f64.powi(power))
            .filter(move |tick| (low..=high).contains(tick))
    }
}

/// The whole file.
pub(super) fn svg(figures: &Figures, args: &Args) -> String {
    let points = &figures.points;
    let [left, top, right, bottom] = FIELD;
    let across = Axis::new(
        points.iter().map(|point| f64::from(point.workers)),
        left,
        right,
    );
    let rates = points
        .iter()
        .flat_map(|point| [point.rate(), point.predicted_rate(), point.ideal_rate(args)]);
    let up = Axis::new(rates, bottom, top);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#333\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for tick in across.ticks() {
        let x = across.at(tick);
        svg += &line((x, top), (x, bottom), "#eee", "");
        svg += &label((x, bottom + 18.0), "middle", &format!("{tick}"));
    }
    for tick in up.ticks() {
        let y = up.at(tick);
        svg += &line((left, y), (right, y), "#eee", "");
        svg += &label((left - 8.0, y + 4.0), "end", &format!("{tick}"));
    }
    let path = |of: &dyn Fn(&Point) -> f64| -> Vec<(f64, f64)> {
        let placed = points.iter();
        placed
            .map(|point| (across.at(f64::from(point.workers)), up.at(of(point))))
            .collect()
    };
    svg += &polyline(&path(&|point| point.ideal_rate(args)), "#bbb", "");
    svg += &polyline(
        &path(&Point::predicted_rate),
        "#c60",
        " stroke-dasharray=\"6 4\"",
    );
    for (x, y) in path(&Point::rate) {
        svg += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#06c\"/>\n");
    }
    let unit = match args.pool {
        Pool::Encoders => format!("encode {}", args.encode),
        Pool::Decoders => format!("decode {}", args.decode),
    };
    let legend = format!("jobs a second over {} ({unit})", args.pool.as_str());
    svg += &label((left, top - 8.0), "start", &legend);
    let keys = "points: measured · dashed: predicted by medfleet plan · grey: never idle";
    svg += &label(((left + right) / 2.0, HEIGHT - 10.0), "middle", keys);
    svg + "</svg>\n"
}

fn line(from: (f64, f64), to: (f64, f64), colour: &str, more: &str) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"{more}/>\n",
        from.0, from.1, to.0, to.1
    )
}

fn polyline(points: &[(f64, f64)], colour: &str, more: &str) -> String {
    let points = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
    let points = points.collect::<Vec<_>>().join(" ");
    format!(
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"{more}/>\n"
    )
}

fn label(at: (f64, f64), anchor: &str, text: &str) -> String {
    format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{text}</text>\n",
        at.0, at.1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_between_the_ends_in_order() {
        let axis = Axis::new([1.0, 64.0].into_iter(), 0.0, 100.0);
        let places: Vec<f64> = [1.0, 8.0, 64.0].map(|value| axis.at(value)).into();
        assert!(places.is_sorted() && places[0] > 0.0 && places[2] < 100.0);
        assert!((places[1] - 50.0).abs() < 1e-9, "{places:?}");
        assert_eq!(axis.ticks().count(), 7);
    }
}
