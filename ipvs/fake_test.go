package ipvs

import (
	"io/fs"
	"slices"

	"github.com/cloudflare/ipvs"
	"golang.org/x/sys/unix"
)

// fake is a kernel in memory. Like the library, it returns fs.ErrNotExist for an empty list.
type fake struct {
	list   []virtual
	calls  int
	refuse func(op) error // what an operation answers, if not nil
}

func newFake(list ...virtual) *fake {
	f := &fake{}
	for _, v := range list {
		v.destinations = slices.Clone(v.destinations)
		f.list = append(f.list, v)
	}
	return f
}

func (f *fake) find(s ipvs.Service) int {
	return slices.IndexFunc(f.list, func(v virtual) bool { return key(v.service) == key(s) })
}

func (f *fake) do(o op, service, destination bool) (*virtual, int, error) {
	f.calls++
	if f.refuse != nil {
		if err := f.refuse(o); err != nil {
			return nil, 0, err
		}
	}
	i := f.find(o.service)
	switch {
	case i < 0 && service:
		return nil, 0, unix.ESRCH
	case i >= 0 && !service:
		return nil, 0, unix.EEXIST
	case i < 0:
		return nil, 0, nil
	}
	v := &f.list[i]
	d := slices.IndexFunc(v.destinations, func(d ipvs.Destination) bool { return order(d, o.destination) == 0 })
	switch {
	case d < 0 && destination:
		return nil, 0, unix.ENOENT
	case d >= 0 && o.verb == createDestination:
		return nil, 0, unix.EEXIST
	}
	return v, d, nil
}

func (f *fake) Services() ([]ipvs.ServiceExtended, error) {
	if len(f.list) == 0 {
		return nil, fs.ErrNotExist
	}
	var all []ipvs.ServiceExtended
	for _, v := range f.list {
		v.service.Flags |= ipvs.ServiceHashed
		all = append(all, ipvs.ServiceExtended{Service: v.service})
	}
	return all, nil
}

func (f *fake) Destinations(s ipvs.Service) ([]ipvs.DestinationExtended, error) {
	i := f.find(s)
	if i < 0 || len(f.list[i].destinations) == 0 {
		return nil, fs.ErrNotExist
	}
	var all []ipvs.DestinationExtended
	for _, d := range f.list[i].destinations {
		all = append(all, ipvs.DestinationExtended{Destination: d})
	}
	return all, nil
}

func (f *fake) CreateService(s ipvs.Service) error {
	_, _, err := f.do(op{verb: createService, service: s}, false, false)
	if err == nil {
		f.list = append(f.list, virtual{service: s})
	}
	return err
}

func (f *fake) UpdateService(s ipvs.Service) error {
	v, _, err := f.do(op{verb: updateService, service: s}, true, false)
	if err == nil {
		v.service = s
	}
	return err
}

func (f *fake) RemoveService(s ipvs.Service) error {
	_, _, err := f.do(op{verb: removeService, service: s}, true, false)
	if err == nil {
		f.list = slices.Delete(f.list, f.find(s), f.find(s)+1)
	}
	return err
}

func (f *fake) CreateDestination(s ipvs.Service, d ipvs.Destination) error {
	v, _, err := f.do(op{createDestination, s, d}, true, false)
	if err == nil {
		v.destinations = append(v.destinations, d)
	}
	return err
}

func (f *fake) UpdateDestination(s ipvs.Service, d ipvs.Destination) error {
	v, i, err := f.do(op{updateDestination, s, d}, true, true)
	if err == nil {
		v.destinations[i] = d
	}
	return err
}

func (f *fake) RemoveDestination(s ipvs.Service, d ipvs.Destination) error {
	v, i, err := f.do(op{removeDestination, s, d}, true, true)
	if err == nil {
		v.destinations = slices.Delete(v.destinations, i, i+1)
	}
	return err
}
