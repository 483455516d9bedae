//! Records on their way to the broker, and the word back: the broker acknowledges many at once, and those who wait on one
//! thread are woken once.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use rdkafka::{
    Message,
    client::Client,
    error::{KafkaError, KafkaResult},
    message::{DeliveryResult, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
};
use tokio::sync::oneshot;

use super::{Context, KafkaUrl, blocking, unavailable};
use crate::{StoreError, courier::Courier, log::NewRecord};

/// How long the thread that hears acknowledgements listens before it looks whether anybody needs it.
const LISTEN: Duration = Duration::from_millis(100);

/// The offset that a record got, or why it got none that is known of.
pub(crate) type Delivery = Result<i64, KafkaError>;

thread_local! {
    static COURIER: RefCell<Option<Courier<Delivery>>> = const { RefCell::new(None) };
}

/// Who waits for a record.
pub(crate) struct Waiting {
    done: oneshot::Sender<Delivery>,
    courier: Courier<Delivery>,
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Box<Waiting>) {
        let outcome = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        let Waiting { done, courier } = *waiting;
        courier.bring(done, outcome);
    }
}

/// A producer and the thread that hears for it.
#[derive(Clone)]
pub(crate) struct Producer(Arc<BaseProducer<Context>>);

impl Producer {
    /// A producer of the client's settings at `url`, and these.
    pub(crate) fn new(url: &KafkaUrl, settings: &[(&str, String)]) -> Result<Self, StoreError> {
        let mut config = url.client();
        for (name, value) in settings {
            config.set(*name, value);
        }
        let producer = config.create_with_context(Context::default()).map_err(|e| unavailable(&e))?;
        let producer: Arc<BaseProducer<Context>> = Arc::new(producer);
        let held = Arc::downgrade(&producer);
        let named = thread::Builder::new().name("acknowledgements".into()).spawn(move || listen(&held));
        named.map_err(|_| StoreError::unavailable(super::STORE, "no thread could be made"))?;
        Ok(Self(producer))
    }

    pub(crate) fn client(&self) -> &Client<Context> {
        self.0.client()
    }

    /// Sends a record; the outcome comes later. An error means that it was not sent.
    pub(crate) fn send(
        &self,
        topic: &str,
        partition: i32,
        record: &NewRecord,
        headers: OwnedHeaders,
    ) -> KafkaResult<oneshot::Receiver<Delivery>> {
        let (done, outcome) = oneshot::channel();
        let waiting = Box::new(Waiting { done, courier: COURIER.with(Courier::of_thread) });
        let mut message: BaseRecord<'_, [u8], [u8], Box<Waiting>> = BaseRecord::with_opaque_to(topic, waiting)
            .partition(partition)
            .timestamp(record.timestamp.millis())
            .headers(headers);
        if let Some(key) = &record.key {
            message = message.key(key);
        }
        if let Some(value) = &record.value {
            message = message.payload(value);
        }
        self.0.send(message).map_err(|(error, _)| error)?;
        Ok(outcome)
    }

    /// Waits until all that was sent has an outcome.
    pub(crate) async fn flush(&self, wait: Duration) -> Result<(), StoreError> {
        let producer = Arc::clone(&self.0);
        blocking(move || producer.flush(wait).map_err(|e| unavailable(&e))).await
    }
}

fn listen(held: &Weak<BaseProducer<Context>>) {
    while let Some(producer) = held.upgrade() {
        producer.poll(LISTEN);
    }
}
