//! Names of the labels and annotations that the kubelet puts on sandboxes and containers, and reads back after a
//! restart (upstream pkg/kubelet/types and kuberuntime/labels.go). Owns names only.

/// Label: name of the pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: namespace of the pod.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: uid of the pod.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: name of the container.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: how often the container was started before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: hash of what makes a running container out of date (name and image).
pub const HASH: &str = "io.kubernetes.container.hash";
/// Annotation: path inside the container of its termination message.
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `File` or `FallbackToLogsOnError`.
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the pod's grace, so that a container of a pod that is no longer known can be stopped right.
pub const POD_TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation: the signal that ends the container, instead of its image's (CRI's ContainerConfig.stop_signal of 1.33,
/// which k8s-cri does not have yet; the bundled runtime reads it from here).
pub const STOP_SIGNAL: &str = "io.kubernetes.container.stopSignal";
/// Annotation: JSON of the container's preStop hook, for the same reason.
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
