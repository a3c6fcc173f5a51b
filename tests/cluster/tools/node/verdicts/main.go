// Says what NetworkPolicies allow, by cyclonus: a reading of the specification that is not ours. Reads policies and
// packets as JSON, writes for each packet whether its receiver's ingress and its sender's egress allow it.
package main

import (
	"encoding/json"
	"log"
	"os"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
)

// end is one end of a connection; without a namespace it is no pod.
type end struct {
	Address         string
	Namespace       string
	NamespaceLabels map[string]string
	Labels          map[string]string
}

type packet struct {
	From, To end
	Protocol core.Protocol
	Port     int
	PortName string
}

type question struct {
	Policies []*networking.NetworkPolicy
	Packets  []packet
}

func (e end) peer() *matcher.TrafficPeer {
	peer := &matcher.TrafficPeer{IP: e.Address}
	if e.Namespace != "" {
		peer.Internal = &matcher.InternalPeer{PodLabels: e.Labels, NamespaceLabels: e.NamespaceLabels, Namespace: e.Namespace}
	}
	return peer
}

func main() {
	questions := json.NewDecoder(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for questions.More() {
		var asked question
		if err := questions.Decode(&asked); err != nil {
			log.Fatal(err)
		}
		policy := matcher.BuildNetworkPolicies(false, asked.Policies)
		verdicts := make([][2]bool, 0, len(asked.Packets))
		for _, packet := range asked.Packets {
			result := policy.IsTrafficAllowed(&matcher.Traffic{
				Source:           packet.From.peer(),
				Destination:      packet.To.peer(),
				ResolvedPort:     packet.Port,
				ResolvedPortName: packet.PortName,
				Protocol:         packet.Protocol,
			})
			verdicts = append(verdicts, [2]bool{result.Ingress.IsAllowed(), result.Egress.IsAllowed()})
		}
		if err := answers.Encode(verdicts); err != nil {
			log.Fatal(err)
		}
	}
}
