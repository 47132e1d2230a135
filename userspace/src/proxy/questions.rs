//! Asks the workers what their open streams have moved. Each looks into its own memory between two of its tasks: nothing is
//! shared or locked while streams are carried.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::flows::Moved;

/// How long a worker may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Questions that wait for a worker; whoever asks beyond that gets no answer from it.
const WAITING: usize = 16;

/// Where one worker's answer goes.
pub type Question = oneshot::Sender<Moved>;

/// The workers, as those who can be asked.
#[derive(Debug, Default)]
pub struct Questions(Mutex<Vec<mpsc::Sender<Question>>>);

impl Questions {
    /// Those for one more worker.
    pub fn to_worker(&self) -> mpsc::Receiver<Question> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.workers().push(sender);
        receiver
    }

    /// What streams that are open now have moved. Those of a worker that hangs are left out.
    pub async fn moved(&self) -> Moved {
        let workers = self.workers().clone();
        let answers = workers.iter().filter_map(|worker| {
            let (question, answer) = oneshot::channel();
            worker.try_send(question).is_ok().then_some(answer)
        });
        let mut moved = Moved::default();
        for answer in answers.collect::<Vec<_>>() {
            if let Ok(Ok(of_worker)) = timeout(ANSWER_TIMEOUT, answer).await {
                moved.add_all(of_worker);
            }
        }
        moved
    }

    fn workers(&self) -> MutexGuard<'_, Vec<mpsc::Sender<Question>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
