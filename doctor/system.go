package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/arp"
	"appliance/nft"
	"appliance/nft/ruleset"
)

// littleEndian is the order of bytes in which the kernel writes /proc/net/tcp here.
var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

const (
	askFor    = time.Second
	dialFor   = 2 * time.Second
	answerFor = 500 * time.Millisecond
	commits   = 15
	// question is what a Datagram carries. It begins with no byte of the group's own datagrams, so peers drop it.
	question = "appliance doctor?"
)

// System is the host that this process runs on.
type System struct{}

var _ HostView = System{}

func (System) Files() fs.FS { return os.DirFS("/") }

func (System) Interfaces() ([]Interface, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var all []Interface
	for _, l := range links {
		a := l.Attrs()
		i := Interface{
			Name: a.Name, Kind: l.Type(), MTU: a.MTU, MAC: a.HardwareAddr,
			Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", a.Name, err)
		}
		for _, have := range addrs {
			ip, ok := netip.AddrFromSlice(have.IP)
			if bits, _ := have.Mask.Size(); ok {
				i.Addrs = append(i.Addrs, netip.PrefixFrom(ip.Unmap(), bits))
			}
		}
		all = append(all, i)
	}
	return all, nil
}

func (System) FindInterface(vip netip.Addr, pattern string) (string, error) {
	return arp.FindInterface(vip, pattern)
}

func (System) Ask(iface string, addr netip.Addr) ([]net.HardwareAddr, error) {
	return arp.Ask(iface, addr, askFor)
}

func (System) TryRules() error { return nft.Available() }

func (System) TryAssign() error { return nft.Assignable() }

func (System) Taken(frontends []netip.AddrPort) error { return nft.PortConflicts(frontends) }

func (System) Chains() ([]ruleset.ForeignChain, error) { return ruleset.ForeignChains() }

func (System) Writable(path string) bool { return unix.Access("/"+path, unix.W_OK) == nil }

func (System) Dial(ctx context.Context, to netip.AddrPort) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	var d net.Dialer
	begin := time.Now()
	conn, err := d.DialContext(ctx, "tcp", to.String())
	took := time.Since(begin)
	if err == nil {
		err = conn.Close()
	}
	return took, err
}

func (System) Datagram(ctx context.Context, to netip.AddrPort) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(answerFor)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(question)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 64))
	return err
}

func (System) Certificate(ctx context.Context, at netip.AddrPort) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	// Who it is by is not asked: names are what is looked at, and nothing is sent.
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

func (System) Commit(dir string) (all []time.Duration, err error) {
	at := dir
	for {
		if info, err := os.Stat(at); err == nil && info.IsDir() {
			break
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			return nil, fmt.Errorf("dataDir %s: %w", dir, err)
		}
		at = filepath.Dir(at)
	}
	f, err := os.CreateTemp(at, ".appliance-doctor-*")
	if err != nil {
		return nil, fmt.Errorf("dataDir %s cannot be written: %w", dir, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	for range commits {
		begin := time.Now()
		_, err := f.Write(make([]byte, 4096))
		if err == nil {
			err = unix.Fdatasync(int(f.Fd()))
		}
		if err != nil {
			return nil, fmt.Errorf("dataDir %s takes no data: %w", dir, err)
		}
		all = append(all, time.Since(begin))
	}
	return all, nil
}

func (System) ClockSynchronised() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, os.NewSyscallError("adjtimex", err)
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, nil
}

// Answer listens on an address by TCP and UDP, so that the doctor on another host can try both, until ctx ends.
func Answer(ctx context.Context, at netip.AddrPort) error {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("%w; stop the appliance first, it answers by itself", err)
	}
	defer tcp.Close()
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	defer udp.Close()
	stop := context.AfterFunc(ctx, func() { tcp.Close(); udp.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := tcp.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				conn.Close()
			}
		}
	}()
	b := make([]byte, len(question)+1)
	for {
		n, from, err := udp.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err == nil && string(b[:n]) == question {
			udp.WriteToUDPAddrPort(b[:n], from)
		}
	}
	<-done
	return nil
}
