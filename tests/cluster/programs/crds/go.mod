// Only for what their archives hold beside the code: the definitions of the resources
// that the components `monitoring` and `keda` make.
module zmq-echo/tests/cluster/crds

go 1.26.0

require (
	github.com/kedacore/keda/v2 v2.21.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
