package web

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PageOrders let users give on the page the orders of `appliance backends`, `peers` and `transfer`.
type PageOrders struct {
	// Backends and Nodes list what there is to order, by the names that Give takes.
	Backends, Nodes func() []string
	// Give does what user orders, and says what was done. The error says why not.
	Give func(ctx context.Context, user string, o PageOrder) (said string, err error)
}

// A PageOrder is one order. Do is that of an orderKind, To what it is about, and Weight the number of the order weight.
type PageOrder struct{ Do, To, Weight string }

// An orderKind is a kind of order: what it is called, and what it does.
type orderKind struct{ Do, Name, Does string }

var (
	backendOrders = []orderKind{
		{"drain", "drain", "it gets no new connections, and its open ones continue"},
		{"disable", "disable", "it gets no connections, and its open ones are reset"},
		{"enable", "enable", "it is as configured, and in rotation"},
		{"weight", "weight", "its share of new connections becomes"},
	}
	nodeOrders = []orderKind{
		{"drain-node", "drain", "it holds only if nobody else can, and its servers get no new connections"},
		{"undrain-node", "undrain", "it takes part again"},
		{"transfer", "transfer", "it becomes the holder now"},
		{"pin", "pin", "it holds whenever it can"},
		{"unpin", "unpin", "nobody is pinned any more"},
	}
)

// orderTime bounds an order, and formLife is how long a form may lie open.
const (
	orderTime = 10 * time.Second
	formLife  = time.Hour
	maxForm   = 4 << 10
)

// An operator serves the forms. They work without a script. Each has a signature of the user, its time and, once it is
// to be carried out, of the order, by a key of this process: another site can neither read nor make one.
type operator struct {
	orders *PageOrders
	page   *Page
	key    []byte
	origin *http.CrossOriginProtection
}

func newOperator(orders *PageOrders, page *Page) *operator {
	o := &operator{orders: orders, page: page, key: make([]byte, 32), origin: http.NewCrossOriginProtection()}
	rand.Read(o.key)
	return o
}

// sign is the signature of what a form of user says, at that time.
func (o *operator) sign(user, at string, order PageOrder) string {
	mac := hmac.New(sha256.New, o.key)
	for _, word := range []string{user, at, order.Do, order.To, order.Weight} {
		mac.Write([]byte(strconv.Itoa(len(word)) + ":" + word))
	}
	return at + "." + hex.EncodeToString(mac.Sum(nil))
}

// signed reports whether a form of user was signed for order, not too long ago.
func (o *operator) signed(token, user string, order PageOrder) bool {
	at, _, _ := strings.Cut(token, ".")
	made, err := strconv.ParseInt(at, 10, 64)
	return err == nil && time.Since(time.Unix(made, 0)) < formLife &&
		hmac.Equal([]byte(token), []byte(o.sign(user, at, order)))
}

// A form is what the page of orders shows.
type form struct {
	Title, User, Token, Said, Problem string
	Backends, Nodes                   []string
	BackendOrders, NodeOrders         []orderKind
	Order                             PageOrder // to be confirmed
	Kind                              orderKind
}

func (o *operator) show(w http.ResponseWriter, status int, f form) {
	f.Title = "Operate"
	f.Backends, f.Nodes = o.orders.Backends(), o.orders.Nodes()
	f.BackendOrders, f.NodeOrders = backendOrders, nodeOrders
	f.Token = o.sign(f.User, strconv.FormatInt(time.Now().Unix(), 10), f.Order)
	w.Header().Set("Content-Security-Policy",
		strings.Replace(contentSecurityPolicy, "form-action 'none'", "form-action 'self'", 1))
	o.page.write(w, status, "operate.html", f)
}

// user is who asks. A token is for scrapers, and gives no orders.
func (o *operator) user(w http.ResponseWriter, r *http.Request) (name string, ok bool) {
	if name, _, ok = r.BasicAuth(); !ok {
		http.Error(w, "only users give orders, not who has the token", http.StatusForbidden)
	}
	return name, ok
}

// get shows the forms.
func (o *operator) get(w http.ResponseWriter, r *http.Request) {
	if user, ok := o.user(w, r); ok {
		o.show(w, http.StatusOK, form{User: user})
	}
}

// post asks whether an order is meant, and carries out one that was confirmed.
func (o *operator) post(w http.ResponseWriter, r *http.Request) {
	user, ok := o.user(w, r)
	if !ok {
		return
	}
	if err := o.origin.Check(r); err != nil {
		http.Error(w, "orders come from this page only", http.StatusForbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "this is no form of this page", http.StatusBadRequest)
		return
	}
	order := PageOrder{Do: r.PostForm.Get("do"), To: r.PostForm.Get("to"), Weight: r.PostForm.Get("weight")}
	kind, problem := o.judge(&order)
	confirmed := r.PostForm.Get("confirmed") != ""
	signed := PageOrder{}
	if confirmed {
		signed = order
	}
	switch {
	case !o.signed(r.PostForm.Get("token"), user, signed):
		o.show(w, http.StatusForbidden,
			form{User: user, Problem: "That form is too old, or not of this page. Nothing was done."})
	case problem != "":
		o.show(w, http.StatusBadRequest, form{User: user, Problem: problem + " Nothing was done."})
	case !confirmed:
		o.show(w, http.StatusOK, form{User: user, Order: order, Kind: kind})
	default:
		ctx, cancel := context.WithTimeout(r.Context(), orderTime)
		defer cancel()
		said, err := o.orders.Give(ctx, user, order)
		if err != nil {
			o.show(w, http.StatusConflict, form{User: user, Problem: err.Error()})
			return
		}
		o.show(w, http.StatusOK, form{User: user, Said: said})
	}
}

// judge is what an order is, and what is wrong with it. It leaves out of it what it does not need.
func (o *operator) judge(order *PageOrder) (kind orderKind, problem string) {
	kinds, targets := backendOrders, o.orders.Backends()
	is := func(k orderKind) bool { return k.Do == order.Do }
	if !slices.ContainsFunc(kinds, is) {
		kinds, targets = nodeOrders, o.orders.Nodes()
	}
	at := slices.IndexFunc(kinds, is)
	if at < 0 {
		return kind, "There is no such order."
	}
	kind = kinds[at]
	if order.Do == "unpin" {
		order.To = ""
	} else if !slices.Contains(targets, order.To) {
		return kind, "What the order is about is not there any more."
	}
	if order.Do != "weight" {
		order.Weight = ""
	} else if n, err := strconv.Atoi(order.Weight); err != nil || n < 0 || n > 256 {
		return kind, "A weight is a number from 0 to 256."
	}
	return kind, ""
}
