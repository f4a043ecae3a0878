package doctor

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"appliance/configs"
	"appliance/keyfile"
	"appliance/raft/auth"
)

// keys looks at the files with secrets.
func (v *visit) keys() (all []Finding) {
	if v.alone || v.cfg.Group.Insecure {
		return nil
	}
	g := v.cfg.Group
	check := func(file, kind string, load func(string) error) {
		if file == "" {
			return
		}
		if err := load(file); err != nil {
			all = append(all, problem("keys", err.Error(), "the appliance does not start with it",
				"see the line above; every peer has the same group key, in a file of mode 0600"))
			return
		}
		all = append(all, fine("keys", "%s is %s", file, kind))
		v.mode(file, &all)
	}
	switch {
	case g.CAFile != "":
		for _, f := range []string{g.CAFile, g.CertFile, g.CertKeyFile} {
			check(f, "there", v.readable)
		}
	case g.KeyFile == "" && !v.cfg.Worker():
		all = append(all, problem("keys", "there is no group key, and no certificate",
			"whoever reaches the peer port could vote, so the appliance does not start",
			"(umask 077; appliance keygen > "+configs.DefaultKeyFile+")   # on one node, and copied to the others"))
	case v.cfg.Worker():
		check(g.KeyFile, "a worker's key", func(f string) error { _, err := auth.LoadWorkerKey(f); return err })
	default:
		group := func(f string) error { _, err := auth.LoadKeys(f); return err }
		check(g.KeyFile, "a group key", group)
		check(g.OldKeyFile, "a group key", group)
	}
	for _, f := range []string{v.cfg.Admin.TokenFile, v.cfg.Admin.CertFile, v.cfg.Admin.CertKeyFile} {
		check(f, "there", v.readable)
	}
	return all
}

// readable opens a file.
func (v *visit) readable(file string) error {
	if _, err := fs.ReadFile(v.files, strings.TrimPrefix(file, "/")); err != nil {
		return fmt.Errorf("%w; correct the path, or run this as root", err)
	}
	return nil
}

// mode warns of secrets that others may read, where the appliance itself does not refuse them.
func (v *visit) mode(file string, all *[]Finding) {
	info, err := fs.Stat(v.files, strings.TrimPrefix(file, "/"))
	if err != nil || info.Mode().Perm()&0o077 == 0 || info.Mode().Perm()&0o037 == 0 && keyfile.ForService(info) || strings.HasSuffix(file, ".crt") || file == v.cfg.Group.CAFile ||
		file == v.cfg.Group.CertFile || file == v.cfg.Admin.CertFile {
		return
	}
	*all = append(*all, hint("keys", fmt.Sprintf("%s can be read by others (mode %04o)", file, info.Mode().Perm()),
		"who has it can act as this node", "chmod 600 "+file))
}

// text is a file's content, or "".
func (v *visit) text(path string) string {
	data, err := fs.ReadFile(v.files, path)
	if err != nil {
		return ""
	}
	return string(data)
}

// enabled says whether systemd starts a unit at boot.
func (v *visit) enabled(unit string) bool {
	found, err := fs.Glob(v.files, "etc/systemd/system/*.wants/"+unit)
	return err == nil && len(found) > 0
}

// managers looks for programs that manage addresses and may take those on lo away.
func (v *visit) managers() (all []Finding) {
	grep := func(pattern string, words ...string) (file string) {
		files, err := fs.Glob(v.files, pattern)
		if err != nil {
			return ""
		}
		for _, f := range files {
			for line := range strings.Lines(v.text(f)) {
				if slices.Contains(words, strings.ReplaceAll(strings.TrimSpace(line), " ", "")) {
					return "/" + f
				}
			}
		}
		return ""
	}
	why := "the virtual addresses are on lo; whoever manages lo may remove them (the appliance puts them back within " +
		"seconds)"
	if v.exists("run/systemd/netif/state") {
		file := cmp.Or(grep("etc/systemd/network/*.network", "Name=lo", "Name=*"), grep("run/systemd/network/*.network",
			"Name=lo", "Name=*"))
		if file != "" {
			all = append(all, hint("managers", "systemd-networkd manages lo by "+file, why,
				"give that file a Name= that does not match lo, or write there: [Network] KeepConfiguration=yes; then networkctl "+
					"reload"))
		} else {
			all = append(all, fine("managers", "systemd-networkd runs, and no file of it is for lo"))
		}
	}
	if v.exists("run/NetworkManager") {
		if file := grep("etc/NetworkManager/system-connections/*", "interface-name=lo"); file != "" {
			all = append(all, hint("managers", "NetworkManager manages lo by "+file, why,
				`printf '[keyfile]\nunmanaged-devices=interface-name:lo\n' > /etc/NetworkManager/conf.d/lo.conf`+
					"\nnmcli general reload"))
		} else {
			all = append(all, fine("managers", "NetworkManager runs, and no profile of it is for lo"))
		}
	}
	for _, vip := range v.cfg.VIPs {
		for _, pattern := range []string{"etc/netplan/*.yaml", "etc/network/interfaces", "etc/network/interfaces.d/*",
			"etc/systemd/network/*.network",
			"etc/NetworkManager/system-connections/*", "etc/sysconfig/network-scripts/ifcfg-*"} {
			files, err := fs.Glob(v.files, pattern)
			if err != nil {
				continue
			}
			for _, f := range files {
				if hasWord(v.text(f), vip.String()) {
					all = append(all, problem("managers", fmt.Sprintf("/%s names %s", f, vip),
						"at the next boot the kernel has the address and answers for it whoever is elected",
						"remove it there; the appliance alone binds it"))
				}
			}
		}
		if f := v.text("etc/keepalived/keepalived.conf"); hasWord(f, vip.String()) {
			all = append(all, hint("managers", "/etc/keepalived/keepalived.conf names "+vip.String(),
				"two programs that answer for one address lose its connections",
				"systemctl disable --now keepalived   # when the appliance takes over"))
		}
	}
	if v.exists("etc/cloud/cloud.cfg") && !v.exists("etc/cloud/cloud-init.disabled") {
		all = append(all, fine("managers", "cloud-init is here: at boot it writes the network configuration anew, which "+
			"has no part in lo"))
	}
	if len(all) == 0 {
		all = append(all, fine("managers", "no network manager is at work on lo"))
	}
	return all
}

// hasWord finds an address that is not a part of a longer one.
func hasWord(text, word string) bool {
	return slices.ContainsFunc(strings.FieldsFunc(text, func(r rune) bool {
		return !(r == '.' || r == ':' || r >= '0' && r <= '9' || r >= 'a' && r <= 'f' || r >= 'A' && r <= 'F')
	}), func(w string) bool { return strings.EqualFold(w, word) })
}

// A hypervisor is known by what the firmware says, and has something to allow.
type hypervisor struct {
	vendor, product, tag string // of DMI; empty: any
	name                 string
	cloud                bool // no frame for a foreign address gets through
	what, mend           string
}

const (
	azureTag = "7783-7084-3265-9085-8269-3286-77" // the chassis tag of every Azure machine
	useTheir = "put the cloud's own load balancer in front, and run the appliance with --role worker on the nodes; or " +
		"use a network that you switch yourself"
)

var hypervisors = []hypervisor{
	{vendor: "Amazon EC2", name: "Amazon EC2", cloud: true, what: "its network answers ARP by itself", mend: useTheir},
	{vendor: "Google", name: "Google Compute Engine", cloud: true, what: "its network answers ARP by itself",
		mend: useTheir},
	{vendor: "Microsoft Corporation", tag: azureTag, name: "Azure", cloud: true, what: "its network answers ARP by itself",
		mend: useTheir},
	{vendor: "DigitalOcean", name: "DigitalOcean", cloud: true, what: "its network drops addresses that it did not give " +
		"out", mend: useTheir},
	{vendor: "Hetzner", name: "Hetzner Cloud", cloud: true, what: "its network routes by its own tables", mend: useTheir},
	{vendor: "Alibaba Cloud", name: "Alibaba Cloud", cloud: true, what: "its network answers ARP by itself",
		mend: useTheir + "; or a HAVIP of the VPC"},
	{tag: "OracleCloud.com", name: "Oracle Cloud", cloud: true, what: "its network answers ARP by itself", mend: useTheir},
	{product: "OpenStack", name: "OpenStack", what: "Neutron's port security drops frames of addresses that a port does " +
		"not have: answers for the VIP, and clients' packets of data plane direct",
		mend: "openstack port set --allowed-address ip-address=VIP PORT   # for each node's port; for direct: " +
			"--no-security-group --disable-port-security"},
	{vendor: "OpenStack", name: "OpenStack", what: "Neutron's port security drops frames of addresses that a port does " +
		"not have",
		mend: "openstack port set --allowed-address ip-address=VIP PORT   # for each node's port; for direct: " +
			"--no-security-group --disable-port-security"},
	{vendor: "VMware", name: "VMware", what: "a port group needs nothing, since every node answers with its own MAC " +
		"address; NSX's SpoofGuard drops foreign addresses",
		mend: "with NSX: add the VIP to the ports' manual address bindings, or use a segment profile without SpoofGuard"},
	{vendor: "Microsoft Corporation", product: "Virtual Machine", name: "Hyper-V",
		what: "with port ACLs or SDN a port may send only its own addresses",
		mend: "Set-VMNetworkAdapter -VMName NODE -MacAddressSpoofing On   # needed only for containers with MAC addresses " +
			"of their own; else check port ACLs"},
	{vendor: "QEMU", name: "QEMU or Proxmox", what: "Proxmox's firewall with ipfilter, and libvirt's filter " +
		"clean-traffic, drop addresses that a machine does not have",
		mend: "Proxmox: add the VIP to the IPSet ipfilter-net0 of each node's VM; libvirt: a filterref without " +
			"clean-traffic"},
	{vendor: "Xen", name: "Xen", what: "XenServer's locking-mode drops addresses that a port does not have",
		mend: "xe vif-param-set uuid=VIF ipv4-allowed=OWN,VIP   # or locking-mode=unlocked"},
}

// platform tells what the hypervisor has to allow.
func (v *visit) platform() []Finding {
	vendor, product, tag := v.line("sys/class/dmi/id/sys_vendor"), v.line("sys/class/dmi/id/product_name"),
		v.line("sys/class/dmi/id/chassis_asset_tag")
	for _, h := range hypervisors {
		if !strings.HasPrefix(vendor, h.vendor) || !strings.HasPrefix(product, h.product) || h.tag != "" && tag != h.tag {
			continue
		}
		if h.cloud {
			return []Finding{problem("platform", "this is a machine of "+h.name+": "+h.what,
				"an address that is answered for by ARP or NDP does not work there, this program's or another's", h.mend)}
		}
		return []Finding{hint("platform", "this is a virtual machine of "+h.name, h.what, h.mend)}
	}
	return []Finding{fine("platform", "%s", cmp.Or(strings.TrimSpace(vendor+" "+product),
		"the firmware does not say what this machine is"))}
}

// confinement looks for SELinux and AppArmor.
func (v *visit) confinement() (all []Finding) {
	if v.line("sys/fs/selinux/enforce") == "1" {
		all = append(all, hint("confinement", "SELinux is enforcing", "a program in a place without a label may not be "+
			"started by systemd, and a container may not write its directories",
			"restorecon -v /usr/local/bin/appliance; chcon -Rt container_file_t /var/lib/appliance /run/appliance   # for the "+
				"pod; what was denied: ausearch -m avc -ts recent"))
	}
	if label := strings.TrimSpace(strings.TrimRight(v.text("proc/self/attr/current"), "\x00")); strings.HasSuffix(label,
		"(enforce)") {
		all = append(all, hint("confinement", "AppArmor confines this process by "+label,
			"a profile may forbid raw sockets or netlink",
			"journalctl -k -g apparmor   # shows what was denied; the pod: appArmorProfile: {type: Unconfined}"))
	}
	if len(all) == 0 {
		all = append(all, fine("confinement", "neither SELinux nor AppArmor confines this process"))
	}
	return all
}
