package report_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"appliance/status"
	"appliance/status/report"
	"appliance/status/statustest"
)

func TestReportSurvives(t *testing.T) {
	c := statustest.New(t, time.Now(), 50, 20)
	c.Fill(1)
	data, err := c.Report("n2")
	if err != nil {
		t.Fatal(err)
	}
	// A report has to fit into one message of the group's channel, in base64.
	if len(data) > 512<<10 {
		t.Errorf("a report of 1000 backends takes %d bytes", len(data))
	}
	r, err := report.Unpack(data)
	if err != nil || r.Snapshot.ID != "n2" || len(r.Snapshot.LoadBalancers) != 50 || len(r.Events) == 0 ||
		len(r.Load) != 50 || r.Peak["etcd"]["10.77.2.11:6445"] != 12 {
		t.Errorf("%v, %+v", err, r.Snapshot.ID)
	}
	// Reasons keep their kind on the way, which their texts do not have.
	c.Edit("n3", func(s *status.Snapshot) {
		s.NotReady = []status.NotReady{
			{Kind: status.NotServed, Subject: "etcd", Reason: "no plane"}, {Kind: status.NoCarrier, Subject: "eth0"},
		}
	})
	if data, err = c.Report("n3"); err != nil {
		t.Fatal(err)
	}
	if r, err = report.Unpack(data); err != nil || !slices.Equal(r.Snapshot.NotReady, c.Snapshots["n3"].NotReady) {
		t.Errorf("%v, the reasons are %+v", err, r.Snapshot.NotReady)
	}
	for _, bad := range [][]byte{nil, []byte("x"), data[:len(data)/2], bytes.Repeat([]byte{0x1f, 0x8b}, 100)} {
		if _, err := report.Unpack(bad); err == nil {
			t.Errorf("%d bytes of something else are taken", len(bad))
		}
	}
}
