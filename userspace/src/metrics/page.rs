//! The page that is made for one request.

use std::{
    collections::BTreeMap,
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};

use super::definitions::Definition;

/// Figures by their names.
#[derive(Debug, Default)]
pub struct Page(BTreeMap<&'static str, Family>);

#[derive(Debug)]
struct Family {
    definition: &'static Definition,
    samples: Vec<(Vec<(&'static str, String)>, Value)>,
}

#[derive(Debug)]
enum Value {
    Counter(u64),
    Gauge(f64),
    Histogram(Histogram),
}

impl Page {
    /// Adds something that only grows. `labels` are values for the definition's labels, in its order.
    pub fn counter(&mut self, definition: &'static Definition, labels: &[&str], value: u64) {
        self.add(definition, labels, Value::Counter(value));
    }

    /// Adds something that goes up and down.
    pub fn gauge(&mut self, definition: &'static Definition, labels: &[&str], value: f64) {
        self.add(definition, labels, Value::Gauge(value));
    }

    /// Adds how something was distributed.
    pub fn histogram(&mut self, definition: &'static Definition, labels: &[&str], value: &Histogram) {
        self.add(definition, labels, Value::Histogram(value.clone()));
    }

    fn add(&mut self, definition: &'static Definition, labels: &[&str], value: Value) {
        debug_assert_eq!(definition.labels.len(), labels.len(), "{}", definition.name);
        let values = labels.iter().map(|value| (*value).to_owned());
        let labels = definition.labels.iter().copied().zip(values).collect();
        let family = self.0.entry(definition.name);
        family.or_insert_with(|| Family { definition, samples: Vec::new() }).samples.push((labels, value));
    }

    /// In the OpenMetrics text format.
    pub fn text(self) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        registry.register_collector(Box::new(self));
        // Writing into a string does not fail.
        let _ = text::encode(&mut text, &registry);
        text
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { definition, samples } in self.0.values() {
            let Definition { name, help, kind, .. } = definition;
            let mut metric = encoder.encode_descriptor(name, help, None, (*kind).into())?;
            if let [(labels, value)] = &samples[..]
                && labels.is_empty()
            {
                value.encode(metric)?;
                continue;
            }
            for (labels, value) in samples {
                value.encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

impl Value {
    fn encode(&self, metric: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(value) => ConstCounter::new(*value).encode(metric),
            Self::Gauge(value) => ConstGauge::new(*value).encode(metric),
            Self::Histogram(histogram) => histogram.encode(metric),
        }
    }
}

/// A time as Prometheus has it.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A number, which is far below what an `f64` holds exactly.
#[expect(clippy::cast_precision_loss, reason = "counts of things on one host")]
pub fn number(count: impl TryInto<u64>) -> f64 {
    count.try_into().map_or(f64::NAN, |count| count as f64)
}
